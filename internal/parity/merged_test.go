package parity

import (
	"path/filepath"
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

// judgeMerged allows what fanotify's merging takes away, and nothing else; docs/semantics.md lists it.
// Strict equality passes at once. Else each name of each watch has a story: its CREATEs, DELETEs and
// moves in order, and which other events it had at all. Between names there is no order.
func (b *bed) judgeMerged(ops []opgen.Op) {
	b.t.Helper()
	if inotest.Lost(b.heardNative) || inotest.Lost(b.heardGuest) {
		b.t.Fatal("a recorder's own queue overflowed; nothing can be said")
	}
	b.equalTrees()
	native, guest := inotest.FoldMoves(b.heardNative), inotest.FoldMoves(b.heardGuest)
	diff := inotest.Compare(native, guest)
	if diff == "" {
		return
	}
	if full() {
		b.t.Logf("merged: %d lines of difference in the order", strings.Count(diff, "\n"))
	}
	linked := map[string]bool{}
	for _, op := range ops {
		if op.Kind == opgen.Link {
			linked[key(filepath.Dir(op.To), filepath.Base(op.To))] = true
		}
	}
	want, got := names(native), names(guest)
	for k, w := range want {
		if strings.HasSuffix(k, "/") && got[k] != nil && !slices.Contains(got[k].others, notify.Attrib.String()) {
			// Records of link counts of one object are one, so that of a rename which replaced a link may
			// not come, and the next is taken for it.
			w.others = slices.DeleteFunc(w.others, func(s string) bool { return s == notify.Attrib.String() })
		}
		if g := got[k]; g != nil && w.allows(g, linked[k]) {
			got[k] = w
		}
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(story{})); d != "" {
		b.t.Errorf("native (-) and guest (+) differ by more than merging explains:\n%s\nafter:\n%s", d, last(ops))
	}
}

// story is what a watch heard of one name.
type story struct {
	entries []string // CREATE, DELETE, moves, and the ends of what is watched itself
	others  []string // MODIFY, ATTRIB and CLOSE_WRITE, each once
}

// allows reports whether g is what merging can leave of the story. linked says that the name was made
// as a hard link: then its CREATE may have been merged into what was told of the same file by the same
// name before, is told there, and if the name is there in the end, once more.
func (w *story) allows(g *story, linked bool) bool {
	others := slices.Clone(w.others)
	if !slices.Equal(others, g.others) && slices.Contains(w.entries, (notify.MovedTo|notify.IsDir).String()) {
		// A directory's ATTRIB names the directory alone, so that of its new name is merged
		// into one from before it was moved here.
		attrib := (notify.Attrib | notify.IsDir).String()
		others = slices.DeleteFunc(others, func(s string) bool { return s == attrib && !slices.Contains(g.others, s) })
	}
	if !slices.Equal(others, g.others) {
		return false
	}
	if repeated(w.entries, g.entries) || !linked {
		return repeated(w.entries, g.entries)
	}
	want, got := slices.Sorted(slices.Values(w.entries)), slices.Sorted(slices.Values(g.entries))
	if !repeated(want, got) && len(got) > 0 && got[0] == notify.Create.String() {
		got = got[1:]
	}
	return repeated(want, got)
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

func key(label, name string) string { return label + "/" + name }

// names tells the stories of all names.
func names(records []inotest.Record) map[string]*story {
	const others = notify.Modify | notify.Attrib | notify.CloseWrite
	out := map[string]*story{}
	for _, r := range records {
		k := key(r.Label, r.Name)
		if out[k] == nil {
			out[k] = &story{}
		}
		s, what := out[k], r.Mask.String()
		switch {
		case r.Mask&others == 0:
			s.entries = append(s.entries, what)
		case !slices.Contains(s.others, what):
			s.others = append(s.others, what)
		}
	}
	for _, s := range out {
		slices.Sort(s.others)
	}
	return out
}
