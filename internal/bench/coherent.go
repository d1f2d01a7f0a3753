package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// rereads is how many files are read, changed on the host and read again.
const rereads = 200

// coherent compares every mount with the host: as the walks have left it, and
// right after changes of files that the mount has just shown.
func (b *bench) coherent(mounts []*mount, changes int) error {
	t := b.report.add("Coherence: what a mount shows differently from the host", "mount",
		fmt.Sprintf("files after %d changes during the walks", changes),
		fmt.Sprintf("of %d files read, rewritten on the host and read again at once: stale content", rereads), "stale time", "target")
	for _, m := range mounts[1:] {
		sync := func() error { return nil }
		if strings.HasPrefix(m.name, "heraldfs") {
			sync = m.sync
		}
		if err := sync(); err != nil {
			return err
		}
		files, err := differences(mounts[0].point, m.point)
		if err != nil {
			return err
		}
		content, times, err := reread(mounts[0].point, m.point, sync)
		if err != nil {
			return err
		}
		said := ""
		if strings.HasPrefix(m.name, "heraldfs") {
			said = "0: " + verdict(files+content+times == 0)
		}
		t.row(m.name, fmt.Sprint(files), fmt.Sprint(content), fmt.Sprint(times), said)
	}
	t.note("Names, modes, sizes, times and content are compared. heraldfs is looked at after `heraldfs sync`; the others have no such thing. A walk through them takes longer than their caches live, so only reading again at once shows what they keep.")
	return nil
}

// reread counts the files of which the mount still shows what it showed before the host
// rewrote them, at the same size.
func reread(native, other string, sync func() error) (content, times int, err error) {
	for i := range rereads {
		rel := filepath.Join(fmt.Sprintf("p%d", i%20), "d0", "file1.txt")
		host, guest := filepath.Join(native, rel), filepath.Join(other, rel)
		if _, _, err := shown(guest); err != nil {
			return 0, 0, err
		}
		want, _, err := shown(host)
		if err != nil {
			return 0, 0, err
		}
		want = bytes.Map(turn, want)
		if err := rewrite(host, want); err != nil {
			return 0, 0, err
		}
		if err := sync(); err != nil {
			return 0, 0, err
		}
		got, gotTime, err := shown(guest)
		if err != nil {
			return 0, 0, err
		}
		_, wantTime, err := shown(host)
		if err != nil {
			return 0, 0, err
		}
		if !bytes.Equal(got, want) {
			content++
		}
		if !gotTime.Equal(wantTime) {
			times++
		}
	}
	return content, times, nil
}

// shown asks for the time first, since opening a file can refresh it, and once more at the end, since
// reading makes the kernel forget it.
func shown(path string) ([]byte, time.Time, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, time.Time{}, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, time.Time{}, err
	}
	_, err = os.Stat(path)
	return text, st.ModTime(), err
}

// differences looks at the mount first, while its caches are as they were.
func differences(native, other string) (int, error) {
	got, err := inventory(other)
	if err != nil {
		return 0, err
	}
	want, err := inventory(native)
	if err != nil {
		return 0, err
	}
	n := 0
	for path, w := range want {
		if g, ok := got[path]; !ok || !slices.Equal(w, g) {
			n++
		}
		delete(got, path)
	}
	return n + len(got), nil
}

// inventory describes everything below dir, without .git.
func inventory(dir string) (map[string][]string, error) {
	all := map[string][]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == ".git" {
			return fs.SkipDir
		}
		st, err := os.Lstat(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		is := []string{st.Mode().String(), st.ModTime().String()}
		if st.Mode().IsRegular() {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			is = append(is, fmt.Sprint(st.Size()), string(text))
		}
		all[rel] = is
		return nil
	})
	return all, err
}
