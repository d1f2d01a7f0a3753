//go:build linux

package tree

import (
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/watcher"
)

func TestStory(t *testing.T) {
	each(t, func(t *testing.T, o Options, base string) {
		dir, out := filepath.Join(base, "root"), filepath.Join(base, "outside")
		must(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o700))
		must(t, os.Mkdir(out, 0o700))
		must(t, os.MkdirAll(filepath.Join(out, "in"), 0o700))
		write(t, filepath.Join(out, "in/side"))
		o.Roots = []string{dir}
		r := watch(t, o)
		p := func(s string) string { return filepath.Join(dir, s) }

		var got []Record
		step := func(err error) {
			t.Helper()
			must(t, err)
			got = append(got, r.fence()...)
		}
		write(t, p("a/b/f"))
		step(os.Rename(p("a/b/f"), p("a/g")))
		step(os.Rename(p("a"), p("z")))
		step(os.WriteFile(p("z/b/h"), []byte("x"), 0o600))
		step(os.Rename(p("z/b"), filepath.Join(out, "b")))
		step(os.WriteFile(filepath.Join(out, "b/unseen"), nil, 0o600))
		step(os.Rename(filepath.Join(out, "in"), p("in")))
		step(os.Remove(p("in/side")))
		step(os.Chmod(p("in"), 0o755))
		step(os.Remove(p("in")))
		step(os.Chmod(dir, 0o755))
		want := `create "a/b/f"
modify "a/b/f"
close_write "a/b/f"
rename "a/b/f" -> "a/g"
rename "a" -> "z" dir
create "z/b/h"
modify "z/b/h"
close_write "z/b/h"
rename "z/b" -> "" dir
rename "" -> "in" dir
create "in/side"
delete "in/side"
attrib "in" dir
delete "in" dir
attrib "." dir
`
		wantLines(t, got, told(o, want))
	})
}

func TestExchange(t *testing.T) {
	each(t, func(t *testing.T, o Options, dir string) {
		must(t, os.MkdirAll(filepath.Join(dir, "a/x"), 0o700))
		must(t, os.MkdirAll(filepath.Join(dir, "b/y"), 0o700))
		o.Roots = []string{dir}
		r := watch(t, o)
		must(t, os.Chmod(filepath.Join(dir, "a/x"), 0o755))
		must(t, os.Chmod(filepath.Join(dir, "b/y"), 0o755))
		must(t, unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "a"), unix.AT_FDCWD, filepath.Join(dir, "b"), unix.RENAME_EXCHANGE))
		var first []Record
		if o.Backend == watcher.Portable {
			first = r.fence() // what happens before it has looked comes in any order
		}
		write(t, filepath.Join(dir, "a/y/f"))
		write(t, filepath.Join(dir, "b/x/g"))
		first = append(first, r.fence()...)
		want := `attrib "a/x" dir
attrib "b/y" dir
exchange "a" -> "b" dir
create "a/y/f"
modify "a/y/f"
close_write "a/y/f"
create "b/x/g"
modify "b/x/g"
close_write "b/x/g"
`
		wantLines(t, first, told(o, want))
	})
}

// TestExchangeOfFiles has exchanges of files, right behind each other too, and renames to and fro that are none.
func TestExchangeOfFiles(t *testing.T) {
	each(t, func(t *testing.T, o Options, dir string) {
		if o.Backend == watcher.Portable {
			return // tells an exchange if it can
		}
		must(t, os.Mkdir(filepath.Join(dir, "d"), 0o700))
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "d/b")
		write(t, a)
		write(t, b)
		o.Roots = []string{dir}
		r := watch(t, o)
		must(t, os.Chmod(filepath.Join(dir, "d"), 0o755))
		r.fence()
		exchange := func() { must(t, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)) }

		exchange()
		wantLines(t, r.fence(), "exchange \"a\" -> \"d/b\"\n")
		if o.Backend != watcher.Inotify {
			return // merges what follows, if it is read late
		}
		exchange()
		exchange()
		must(t, os.Remove(b))
		wantLines(t, r.fence(), "exchange \"a\" -> \"d/b\"\nexchange \"a\" -> \"d/b\"\ndelete \"d/b\"\n")
		must(t, os.Rename(a, b))
		must(t, os.Rename(b, a))
		wantLines(t, r.fence(), "rename \"a\" -> \"d/b\"\nrename \"d/b\" -> \"a\"\n")
		must(t, os.Rename(a, b))
		must(t, os.Rename(b, a))
		must(t, unix.Mknod(b, unix.S_IFREG|0o600, 0))
		wantLines(t, r.fence(), "rename \"a\" -> \"d/b\"\nrename \"d/b\" -> \"a\"\ncreate \"d/b\"\n")
		for range 1000 {
			exchange()
		}
		wantLines(t, r.fence(), strings.Repeat("exchange \"a\" -> \"d/b\"\n", 1000))
	})
}

// TestRenameBurst renames directories, and ones above them, while files are made in them. The
// directories have not been heard of before. fsnotify hears nothing of a renamed directory until it is watched
// anew; TestRandom has what is right with it all the same.
func TestRenameBurst(t *testing.T) {
	eachOf(t, kernelBackends, func(t *testing.T, o Options, dir string) {
		const trees = 20
		for i := range trees {
			must(t, os.MkdirAll(filepath.Join(dir, fmt.Sprintf("t%d/m/deep/er", i)), 0o700))
		}
		o.Roots = []string{dir}
		r := watch(t, o)
		want := make(map[string]bool)
		var where [trees]string
		for i := range where {
			where[i] = fmt.Sprintf("t%d", i)
		}
		for round := range 10 {
			for i := range trees {
				top := filepath.Join(dir, where[i])
				mid := fmt.Sprintf("m%d", round)
				if round == 0 {
					mid = "m"
				}
				name := fmt.Sprintf("%s/deep/er/f%d.%d", mid, i, round)
				write(t, filepath.Join(top, name))
				want[where[i]+"/"+name] = true
				next := fmt.Sprintf("m%d", round+1)
				must(t, os.Rename(filepath.Join(top, mid), filepath.Join(top, next)))
				// The kernel merges equal renames of one directory that were not read yet, so each is another.
				from, to := where[i], fmt.Sprintf("t%d.%d", i, round)
				must(t, os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)))
				where[i] = to
				name = fmt.Sprintf("%s/deep/er/g%d.%d", next, i, round)
				write(t, filepath.Join(dir, to, name))
				want[to+"/"+name] = true
			}
		}
		renames := 0
		for _, rec := range r.fence() {
			switch rec.Type {
			case TypeCreate:
				if !want[rec.Path] {
					t.Errorf("wrong path or told twice: %v", rec)
				}
				delete(want, rec.Path)
			case TypeRename:
				renames++
				if !rec.IsDir {
					t.Errorf("not a directory: %v", rec)
				}
			}
		}
		if len(want) != 0 {
			t.Errorf("%d paths missing: %v", len(want), want)
		}
		if renames != 2*10*trees {
			t.Errorf("%d renames", renames)
		}
	})
}

// TestPingPong renames to and fro, so that the kernel merges what it has not handed out. Whatever it
// tells, the names are right in the end, and so are the paths of what comes later.
func TestPingPong(t *testing.T) {
	each(t, func(t *testing.T, o Options, dir string) {
		must(t, os.MkdirAll(filepath.Join(dir, "a/sub"), 0o700))
		write(t, filepath.Join(dir, "f"))
		m := onDisk(t, dir)
		o.Roots = []string{dir}
		r := watch(t, o)
		p := func(s string) string { return filepath.Join(dir, s) }
		// Nobody reads the queue meanwhile.
		held := &r.mu
		if o.Backend != watcher.Portable {
			held = &r.tree.groups[0].mu
		}
		held.Lock()
		must(t, os.Mkdir(p("wake"), 0o700))
		for range 3 {
			must(t, os.Rename(p("a"), p("b")))
			must(t, os.Rename(p("b"), p("a")))
			must(t, os.Rename(p("f"), p("g")))
			must(t, os.Rename(p("g"), p("f")))
		}
		must(t, os.Rename(p("a"), p("b")))
		must(t, os.Rename(p("f"), p("g")))
		held.Unlock()
		got := r.fence()
		m.apply(t, entriesOf(got), true)
		if d := m.diff(onDisk(t, dir)); d != "" {
			t.Errorf("%s\n%s", d, lines(got))
		}
		must(t, os.Mkdir(p("b/sub/new"), 0o700))
		wantLines(t, r.fence(), "create \"b/sub/new\" dir\n")
	})
}

func TestMkdirBurst(t *testing.T) {
	each(t, func(t *testing.T, o Options, dir string) {
		o.Roots = []string{dir}
		r := watch(t, o)
		for i := range 500 {
			d := filepath.Join(dir, fmt.Sprintf("w%d/x/y", i))
			must(t, os.MkdirAll(d, 0o700))
			write(t, filepath.Join(d, "f"))
		}
		fd, err := unix.Open(dir, unix.O_PATH, 0)
		must(t, err)
		deep := 1000 // deeper than PATH_MAX
		if o.Backend == watcher.Portable {
			deep = 500 // it has no other way than by path
		}
		for i := range deep {
			name := fmt.Sprintf("d%04d", i)
			must(t, unix.Mkdirat(fd, name, 0o700))
			next, err := unix.Openat(fd, name, unix.O_PATH, 0)
			must(t, err)
			unix.Close(fd)
			fd = next
			f, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_WRONLY, 0o600)
			must(t, err)
			unix.Close(f)
		}
		unix.Close(fd)
		m := make(mirror)
		m.apply(t, entriesOf(r.fence()), false)
		if d := m.diff(onDisk(t, dir)); d != "" {
			t.Error(d)
		}
	})
}

func TestTenThousandRenames(t *testing.T) {
	each(t, func(t *testing.T, o Options, dir string) {
		const n = 10000
		if o.Backend == "inotify" || o.Backend == watcher.Portable {
			raise(t, "/proc/sys/fs/inotify/max_queued_events", 4*n)
		}
		must(t, os.Mkdir(filepath.Join(dir, "to"), 0o700))
		for i := range n {
			must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", i)), nil, 0o600))
		}
		o.Roots = []string{dir}
		r := watch(t, o)
		for i := range n {
			must(t, os.Rename(filepath.Join(dir, fmt.Sprintf("f%d", i)), filepath.Join(dir, fmt.Sprintf("to/g%d", i))))
		}
		got := r.fence()
		if len(got) != n {
			t.Fatalf("%d records", len(got))
		}
		for i, rec := range got {
			if rec.Type != TypeRename || rec.OldPath != fmt.Sprintf("f%d", i) || rec.Path != fmt.Sprintf("to/g%d", i) {
				t.Fatalf("record %d: %v", i, rec)
			}
		}
	})
}

// raise sets a sysctl for the duration of the test.
func raise(t *testing.T, path string, value int) {
	t.Helper()
	old, err := os.ReadFile(path)
	must(t, err)
	testenv.Need(t, testenv.Root)
	must(t, os.WriteFile(path, []byte(fmt.Sprint(value)), 0))
	t.Cleanup(func() { must(t, os.WriteFile(path, []byte(strings.TrimSpace(string(old))), 0)) })
}

// TestRandom does random things at full speed and checks that the records lead to what is on the disk.
func TestRandom(t *testing.T) {
	each(t, func(t *testing.T, o Options, base string) {
		for seed := range int64(6) {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				randomRun(t, o, filepath.Join(base, fmt.Sprint(seed)), seed)
			})
		}
	})
}

func randomRun(t *testing.T, o Options, base string, seed int64) {
	rng := rand.New(rand.NewSource(seed))
	dir, out := filepath.Join(base, "in"), filepath.Join(base, "out")
	must(t, os.MkdirAll(dir, 0o700))
	must(t, os.MkdirAll(out, 0o700))
	for i := range 5 {
		must(t, os.MkdirAll(filepath.Join(dir, fmt.Sprintf("d%d/s", i)), 0o700))
	}
	m := onDisk(t, dir)
	o.Roots = []string{dir}
	r := watch(t, o)
	serial := 0
	pick := func(root string) string { // a directory below root
		path := root
		for rng.Intn(3) != 0 {
			es, err := os.ReadDir(path)
			must(t, err)
			var dirs []string
			for _, e := range es {
				if e.IsDir() {
					dirs = append(dirs, e.Name())
				}
			}
			if len(dirs) == 0 {
				break
			}
			path = filepath.Join(path, dirs[rng.Intn(len(dirs))])
		}
		return path
	}
	entry := func(dir string) string {
		es, err := os.ReadDir(dir)
		must(t, err)
		if len(es) == 0 {
			return ""
		}
		return filepath.Join(dir, es[rng.Intn(len(es))].Name())
	}
	fresh := func() string { serial++; return fmt.Sprintf("n%d", serial) }
	var done []string
	rename := func(from, to string) {
		err := os.Rename(from, to)
		done = append(done, fmt.Sprintf("%s -> %s: %v", strings.TrimPrefix(from, base), strings.TrimPrefix(to, base), err))
		for _, ok := range []error{os.ErrNotExist, os.ErrExist, unix.ENOTEMPTY, unix.EINVAL, unix.ENOTDIR, unix.EISDIR, unix.EBUSY} {
			if err == nil || errors.Is(err, ok) {
				return
			}
		}
		t.Fatal(err)
	}
	const ops = 400
	for range ops {
		d := pick(dir)
		switch rng.Intn(12) {
		case 0, 1, 2:
			write(t, filepath.Join(d, fresh()))
		case 3:
			p := filepath.Join(d, fresh(), fresh())
			done = append(done, "mkdir -p "+strings.TrimPrefix(p, base))
			must(t, os.MkdirAll(p, 0o700))
			write(t, filepath.Join(p, fresh()))
		case 4, 5, 6:
			if e := entry(d); e != "" {
				rename(e, filepath.Join(pick(dir), fresh()))
			}
		case 7:
			if e := entry(d); e != "" && e != dir {
				rename(e, filepath.Join(out, fresh()))
			}
		case 8:
			if e := entry(pick(out)); e != "" {
				rename(e, filepath.Join(d, fresh()))
			}
		case 9:
			if d != dir {
				done = append(done, "remove "+strings.TrimPrefix(d, base))
				must(t, os.RemoveAll(d))
			}
		case 10:
			if e := entry(d); e != "" {
				done = append(done, "chmod "+strings.TrimPrefix(e, base))
				must(t, os.Chmod(e, 0o700))
			}
		case 11:
			write(t, filepath.Join(pick(out), fresh()))
		}
	}
	got := r.fence()
	for _, rec := range got {
		if rec.Type == TypeOverflow && o.Backend == "inotify" {
			t.Fatal("the kernel's queue was full, so nothing can be said: fs.inotify.max_queued_events is too small for this")
		}
	}
	m.apply(t, entriesOf(got), o.Backend == "inotify")
	if d := m.diff(onDisk(t, dir)); d != "" || t.Failed() {
		t.Errorf("seed %d:\n%s\n%s\n%s", seed, d, strings.Join(done, "\n"), lines(got))
	}
}
