//go:build linux

package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/watcher"
)

// wantLines compares what came with want, leaving out control records.
func wantLines(t *testing.T, got []Record, want string) {
	t.Helper()
	if s := lines(got); s != want {
		t.Errorf("got\n%swant\n%s", s, want)
	}
}

func TestSeveralRoots(t *testing.T) {
	each(t, func(t *testing.T, o Options, base string) {
		a, b := filepath.Join(base, "a"), filepath.Join(base, "b")
		must(t, os.MkdirAll(filepath.Join(a, "d"), 0o700))
		must(t, os.Mkdir(b, 0o700))
		o.Roots = []string{a, b}
		r := watch(t, o)
		must(t, os.Rename(filepath.Join(a, "d"), filepath.Join(b, "e")))
		got := r.fence()
		if len(got) != 1 || got[0].Type != TypeRename || got[0].OldRoot != 0 || got[0].Root != 1 || got[0].OldPath != "d" || got[0].Path != "e" {
			t.Errorf("got %+v", got)
		}
		write(t, filepath.Join(b, "e/f"))
		for _, rec := range r.fence() {
			if rec.Root != 1 || rec.Path != "e/f" {
				t.Errorf("got %+v", rec)
			}
		}
	})
}

// TestRootsOnTwoFileSystems needs two watchers where a filesystem mark is used.
func TestRootsOnTwoFileSystems(t *testing.T) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			o := b.o
			o.Roots = []string{t.TempDir(), tmpfs(t)}
			r := watch(t, o)
			for i, dir := range o.Roots {
				must(t, os.Mkdir(filepath.Join(dir, "d"), 0o700))
				got := r.fence()
				if len(got) != 1 || got[0].Root != i || got[0].Path != "d" {
					t.Errorf("root %d: got %+v", i, got)
				}
			}
		})
	}
}

func TestFileAsRoot(t *testing.T) {
	each(t, func(t *testing.T, o Options, base string) {
		file := filepath.Join(base, "file")
		write(t, file)
		write(t, file+"2")
		o.Roots = []string{file}
		r := watch(t, o)
		must(t, os.WriteFile(file, []byte("longer"), 0o600))
		must(t, os.WriteFile(file+"2", []byte("not watched"), 0o600))
		must(t, os.Rename(file+"2", file))
		must(t, os.Remove(file))
		// Opening with O_TRUNC is a change of its own, which the kernel may merge with the next.
		got := strings.Replace(lines(r.fence()), "modify \".\"\nmodify \".\"\n", "modify \".\"\n", 1)
		want := "modify \".\"\nclose_write \".\"\nrename \"\" -> \".\"\ndelete \".\"\n"
		if o.Backend == watcher.Portable {
			want = strings.Replace(want, "close_write \".\"\n", "", 1)
		}
		if got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	})
}

func TestNotRecursive(t *testing.T) {
	each(t, func(t *testing.T, o Options, base string) {
		must(t, os.MkdirAll(filepath.Join(base, "sub/deep"), 0o700))
		o.Roots, o.NoRecursive = []string{base}, true
		r := watch(t, o)
		write(t, filepath.Join(base, "sub/unheard"))
		must(t, os.Mkdir(filepath.Join(base, "new"), 0o700))
		write(t, filepath.Join(base, "new/unheard"))
		must(t, os.Rename(filepath.Join(base, "sub/deep"), filepath.Join(base, "deep")))
		must(t, os.Chmod(filepath.Join(base, "sub"), 0o755))
		want := "create \"new\" dir\nrename \"\" -> \"deep\" dir\n"
		if !o.ForceInodeMarks {
			// A fanotify mark on a directory does not hear of the attributes of directories in it.
			want += "attrib \"sub\" dir\n"
		}
		wantLines(t, r.fence(), told(o, want))
	})
}

func TestOverlap(t *testing.T) {
	base := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(base, "a/b"), 0o700))
	must(t, os.Mkdir(filepath.Join(base, "a2"), 0o700))
	write(t, filepath.Join(base, "a/f"))
	p := func(s string) string { return filepath.Join(base, s) }
	for _, c := range []struct {
		roots   []string
		shallow bool
		overlap bool
	}{
		{[]string{p("a"), p("a")}, false, true},
		{[]string{p("a"), p("a/b")}, false, true},
		{[]string{p("a/b"), p("a")}, false, true},
		{[]string{p("a"), p("a/b")}, true, false},
		{[]string{p("a"), p("a2")}, false, false},
		{[]string{p("a"), p("a/f")}, true, true},
		{[]string{p("a/b"), p("a/f")}, false, false},
	} {
		tree, err := Open(Options{Roots: c.roots, NoRecursive: c.shallow, Backend: "inotify"})
		if errors.Is(err, ErrOverlap) != c.overlap || (err == nil) == c.overlap {
			t.Errorf("%v: %v", c.roots, err)
		}
		if tree != nil {
			must(t, tree.Close())
		}
	}
	if _, err := Open(Options{Roots: []string{p("nothing")}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if _, err := Open(Options{}); err == nil {
		t.Error("no error without a root")
	}
}

func TestRootGone(t *testing.T) {
	each(t, func(t *testing.T, o Options, base string) {
		dir := filepath.Join(base, "root")
		must(t, os.MkdirAll(filepath.Join(dir, "d"), 0o700))
		o.Roots = []string{dir}
		r := watch(t, o)
		must(t, os.RemoveAll(dir))
		r.wait("end by itself", func() bool { return r.err != nil })
		r.mu.Lock()
		defer r.mu.Unlock()
		if !errors.Is(r.err, ErrRootGone) {
			t.Errorf("error %v", r.err)
		}
		wantLines(t, r.records[1:], "delete \"d\" dir\ndelete \".\" dir\n")
	})
}

// TestSubmount: what is mounted below the root is watched as well, also if it comes later.
func TestSubmount(t *testing.T) {
	for _, b := range kernelBackends {
		t.Run(b.name, func(t *testing.T) {
			dir := t.TempDir()
			early, late := filepath.Join(dir, "early"), filepath.Join(dir, "late")
			must(t, os.Mkdir(early, 0o700))
			must(t, os.Mkdir(late, 0o700))
			mountTmpfs(t, early)
			must(t, os.MkdirAll(filepath.Join(early, "x/y"), 0o700))
			o := b.o
			o.Roots = []string{dir}
			r := watch(t, o)
			write(t, filepath.Join(early, "x/y/f"))
			wantLines(t, r.fence(), "create \"early/x/y/f\"\nmodify \"early/x/y/f\"\nclose_write \"early/x/y/f\"\n")
			mountTmpfs(t, late)
			r.wait("rescan of the mount", func() bool {
				for _, rec := range r.records {
					if rec.Type == TypeRescan && rec.Path == "late" {
						return true
					}
				}
				return false
			})
			r.fence()
			must(t, os.MkdirAll(filepath.Join(late, "z"), 0o700))
			wantLines(t, r.fence(), "create \"late/z\" dir\n")
		})
	}
}

func mountTmpfs(t *testing.T, dir string) {
	t.Helper()
	testenv.Need(t, testenv.Root)
	must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
}

// TestNoWalk: with a filesystem mark nothing is looked at before something happens.
func TestNoWalk(t *testing.T) {
	dir := t.TempDir()
	for i := range 300 {
		must(t, os.MkdirAll(filepath.Join(dir, fmt.Sprintf("%d/x", i)), 0o700))
	}
	r := watch(t, Options{Backend: "fanotify", Roots: []string{dir}})
	known := func() int {
		g := r.tree.groups[0]
		g.mu.Lock()
		defer g.mu.Unlock()
		n := 0
		for _, d := range g.e.tab.nodes {
			if g.e.tab.inside(d) {
				n++
			}
		}
		return n
	}
	if n := known(); n != 1 {
		t.Errorf("%d directories known at the start", n)
	}
	write(t, filepath.Join(dir, "7/x/f"))
	r.fence()
	if n := known(); n != 3 {
		t.Errorf("%d directories known after an event in one", n)
	}
}

// TestFewDirs keeps forgetting directories, and is right all the same.
func TestFewDirs(t *testing.T) {
	for seed := range int64(4) {
		randomRun(t, Options{Backend: "fanotify", MaxDirs: 3}, filepath.Join(t.TempDir(), "x"), 100+seed)
	}
}

func TestOverflow(t *testing.T) {
	for _, b := range kernelBackends {
		t.Run(b.name, func(t *testing.T) {
			o := b.o
			raise(t, "/proc/sys/fs/inotify/max_queued_events", 16)
			if o.Backend == "fanotify" {
				raise(t, "/proc/sys/fs/fanotify/max_queued_events", 16)
				o.LimitedQueue = true
			}
			dir := t.TempDir()
			must(t, os.MkdirAll(filepath.Join(dir, "old/sub"), 0o700))
			o.Roots = []string{dir}
			r := watch(t, o)
			// Nobody reads the queue while the delivery is held up.
			r.tree.mu.Lock()
			for i := range 200 {
				must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", i)), nil, 0o600))
			}
			must(t, os.Mkdir(filepath.Join(dir, "lost"), 0o700))
			must(t, os.Rename(filepath.Join(dir, "old"), filepath.Join(dir, "moved")))
			r.tree.mu.Unlock()
			ctx, cancel := context.WithTimeout(context.Background(), deadline)
			defer cancel()
			must(t, r.tree.Barrier(ctx))
			got := r.fence()
			overflow, rescan := -1, -1
			for i, rec := range got {
				switch rec.Type {
				case TypeOverflow:
					overflow = i
				case TypeRescan:
					rescan = i
				}
			}
			if overflow < 0 || rescan < overflow {
				t.Fatalf("overflow at %d, rescan at %d:\n%s", overflow, rescan, lines(got))
			}
			if b.name != "fanotify" {
				// The directories are known, so their differences are told.
				between := lines(got[overflow:rescan])
				if !strings.Contains(between, `create "lost" dir`) || !strings.Contains(between, `rename "old" -> "moved" dir`) ||
					strings.Contains(between, "sub") {
					t.Errorf("between:\n%s", between)
				}
			}
			// What comes afterwards has the right paths.
			write(t, filepath.Join(dir, "lost/f"))
			write(t, filepath.Join(dir, "moved/sub/g"))
			wantLines(t, r.fence(), `create "lost/f"
modify "lost/f"
close_write "lost/f"
create "moved/sub/g"
modify "moved/sub/g"
close_write "moved/sub/g"
`)
		})
	}
}

// TestBurst loses none of 200,000 changes.
func TestBurst(t *testing.T) {
	dir := tmpfs(t)
	const n, dirs = 100000, 50
	for i := range dirs {
		must(t, os.Mkdir(filepath.Join(dir, fmt.Sprintf("d%d", i)), 0o700))
	}
	r := watch(t, Options{Backend: "fanotify", Roots: []string{dir}})
	for i := range n {
		d := filepath.Join(dir, fmt.Sprintf("d%d", i%dirs))
		must(t, unix.Mknod(fmt.Sprintf("%s/f%d", d, i), unix.S_IFREG|0o600, 0))
		must(t, os.Rename(fmt.Sprintf("%s/f%d", d, i), fmt.Sprintf("%s/g%d", d, i)))
	}
	created, renamed := make(map[string]bool), make(map[string]bool)
	for _, rec := range r.fence() {
		switch rec.Type {
		case TypeCreate:
			created[rec.Path] = true
		case TypeRename:
			renamed[rec.OldPath+" "+rec.Path] = true
		default:
			t.Fatalf("record %v", rec)
		}
	}
	for i := range n {
		f, g := fmt.Sprintf("d%d/f%d", i%dirs, i), fmt.Sprintf("d%d/g%d", i%dirs, i)
		if !created[f] || !renamed[f+" "+g] {
			t.Fatalf("file %d: created %v, renamed %v; %d and %d in all", i, created[f], renamed[f+" "+g], len(created), len(renamed))
		}
	}
}
