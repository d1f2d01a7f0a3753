package parity

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/heraldfs/heraldfs/internal/inotest"
	"github.com/heraldfs/heraldfs/internal/opgen"
	"github.com/heraldfs/heraldfs/notify"
)

// directoriesOnly leaves the watches on files out. In a burst inotify does not tell which
// object a name stood for, so what only a file's own watch hears can be missing.
func (b *bed) directoriesOnly() {
	dirs := map[string]bool{}
	for _, dir := range b.gen.Static() {
		dirs[dir] = true
	}
	// A directory's own ATTRIB is an event of the directory that it is in; while half a rename waits
	// for its other half, it may pass the events inside.
	drop := func(r inotest.Record) bool { return !dirs[r.Label] || r.Name == "" && r.Mask&notify.IsDir != 0 }
	b.heardNative = slices.DeleteFunc(b.heardNative, drop)
	b.heardGuest = slices.DeleteFunc(b.heardGuest, drop)
}

// judgeMerged allows what fanotify's merging takes away: the order across merged records, and
// how often something happened to a name. Strict equality passes at once.
func (b *bed) judgeMerged(ops []opgen.Op) {
	b.t.Helper()
	if inotest.Lost(b.heardNative) || inotest.Lost(b.heardGuest) {
		b.t.Fatal("a recorder's own queue overflowed; nothing can be said")
	}
	b.equalTrees()
	diff := inotest.Compare(b.heardNative, b.heardGuest)
	if diff == "" {
		return
	}
	if os.Getenv("HERALDFS_PARITY") == "full" {
		b.t.Logf("merged: %d lines of difference in the order", strings.Count(diff, "\n"))
	}
	want, got := names(b.heardNative), names(b.heardGuest)
	differ := 0
	for key, story := range want {
		if repeated(story, got[key]) {
			got[key] = story
		}
		if !slices.Equal(story, got[key]) {
			differ++
		}
	}
	// What a merge has hidden without trace is made up from the host, and may be told as something
	// else that ends the same. It must stay rare.
	if differ <= max(2, len(want)/20) && len(got) <= len(want)+2 {
		if differ > 0 {
			b.t.Logf("%d of %d names have another story that ends the same", differ, len(want))
		}
		return
	}
	if d := cmp.Diff(want, got); d != "" {
		b.t.Errorf("native (-) and guest (+) differ by more than merging explains:\n%s\nafter:\n%s", d, last(ops))
	}
}

// repeated reports whether got is want without some repetitions: the kernel merges equal
// records of one object and name even if others stand between.
func repeated(want, got []string) bool {
	i := 0
	for _, w := range want {
		switch {
		case i < len(got) && got[i] == w:
			i++
		case !slices.Contains(got, w):
			return false
		}
	}
	return i == len(got)
}

// names tells for each name of each watch how often it was made, moved and removed, and which
// changes of contents there were at all.
func names(records []inotest.Record) map[string][]string {
	changes := map[string]map[notify.Mask]bool{}
	out := map[string][]string{}
	for _, r := range records {
		key := r.Label + "/" + r.Name
		if r.Mask&(notify.Modify|notify.Attrib|notify.CloseWrite) != 0 {
			if changes[key] == nil {
				changes[key] = map[notify.Mask]bool{}
			}
			changes[key][r.Mask] = true
			continue
		}
		out[key] = append(out[key], r.Mask.String())
	}
	for _, story := range out {
		slices.Sort(story)
	}
	for key, masks := range changes {
		for _, m := range slices.Sorted(maps.Keys(masks)) {
			out[key] = append(out[key], fmt.Sprint("and ", m))
		}
	}
	return out
}
