package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// tree returns one line for each object below dir with all that a program can see of it: names,
// attributes, contents, link targets and extended attributes. atime is left out, since looking
// changes it.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	var walk func(rel string)
	walk = func(rel string) {
		path := filepath.Join(dir, rel)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatalf("lstat %s: %v", path, err)
		}
		var b strings.Builder
		fmt.Fprintf(&b, "mode %o nlink %d uid %d gid %d rdev %x size %d mtime %d.%d ctime %d.%d", st.Mode, st.Nlink,
			st.Uid, st.Gid, st.Rdev, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			fmt.Fprintf(&b, " text %q xattr %s", read(t, path), xattrs(t, path))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			check(t, err)
			fmt.Fprintf(&b, " -> %s", target)
		}
		out[rel] = b.String()
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			entries, err := os.ReadDir(path)
			check(t, err)
			for _, e := range entries {
				walk(filepath.Join(rel, e.Name()))
			}
		}
	}
	walk(".")
	return out
}

func xattrs(t testing.TB, path string) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	check(t, err)
	var all []string
	for name := range bytes.SplitSeq(bytes.TrimRight(buf[:n], "\x00"), []byte{0}) {
		if len(name) == 0 {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, string(name), value)
		check(t, err)
		all = append(all, fmt.Sprintf("%s=%q", name, value[:n]))
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}

// alike wants the guest to see exactly what is on the host.
func alike(t testing.TB, host, guest string) {
	t.Helper()
	want, got := tree(t, host), tree(t, guest)
	for name, w := range want {
		if got[name] != w {
			t.Errorf("%s: on the host\n  %s\nin the guest\n  %s", name, w, got[name])
		}
	}
	for name := range got {
		if want[name] == "" {
			t.Errorf("%s: in the guest, not on the host", name)
		}
	}
}

// world changes a directory at random and remembers nothing: it looks what there is.
type world struct {
	r   *rand.Rand
	top string
	n   int
}

// pick returns some path below the top: one that is there, or one that may be made.
func (w *world) pick() string {
	dirs := []string{"", "p", "q", "p/deep"}
	return filepath.Join(w.top, dirs[w.r.IntN(len(dirs))], fmt.Sprintf("n%d", w.r.IntN(6)))
}

// change does one thing. That it may fail, such as a remove of what is not there, is part of it.
func (w *world) change() {
	w.n++
	a, b := w.pick(), w.pick()
	switch w.r.IntN(14) {
	case 0, 1, 2:
		os.WriteFile(a, fmt.Appendf(nil, "text %06d", w.n), 0o644) // the size stays
	case 3:
		if f, err := os.OpenFile(a, os.O_WRONLY|os.O_APPEND, 0); err == nil {
			fmt.Fprintf(f, "more %d", w.n)
			f.Close()
		}
	case 4:
		os.Truncate(a, int64(w.r.IntN(20)))
	case 5, 6:
		os.Rename(a, b)
	case 7:
		os.Remove(a)
	case 8:
		os.Mkdir(a, 0o755)
	case 9:
		os.Link(a, b)
	case 10:
		os.Symlink(fmt.Sprintf("target-%d", w.n), a)
	case 11:
		os.Chmod(a, os.FileMode(0o600+w.r.IntN(0o100)))
	case 12:
		unix.Setxattr(a, "user.n", fmt.Appendf(nil, "%d", w.n), 0)
	case 13:
		unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	}
}

// nosy is a guest that looks at everything all the time and so fills its kernel's caches.
func nosy(mnt string, stop *atomic.Bool) {
	for !stop.Load() {
		filepath.WalkDir(mnt, func(path string, e os.DirEntry, err error) error {
			if err != nil || stop.Load() {
				return nil // it is being changed under us
			}
			os.Lstat(path)
			if e.Type().IsRegular() {
				os.ReadFile(path)
			}
			os.Lstat(filepath.Join(filepath.Dir(path), "absent"))
			return nil
		})
		for i := range 6 {
			for _, dir := range []string{"", "p", "q", "p/deep"} {
				os.Lstat(filepath.Join(mnt, dir, fmt.Sprintf("n%d", i))) // absent ones, too
			}
		}
	}
}

func TestCoherence(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			dirs := place(t, "src/p/deep", "src/q", "mnt")
			src, mnt := filepath.Dir(dirs[1]), dirs[2]
			d := serve(t, src, mnt, "--watcher="+backend)
			for round := range 20 {
				w := &world{r: rand.New(rand.NewPCG(uint64(round), 7)), top: src}
				var stop atomic.Bool
				var readers sync.WaitGroup
				readers.Go(func() { nosy(mnt, &stop) })
				for range 60 {
					w.change()
				}
				stop.Store(true)
				readers.Wait()
				d.sync()
				alike(t, src, mnt)
				if t.Failed() {
					t.Fatalf("round %d\n%s", round, d.log)
				}
			}
		})
	}
}

// A rewrite of the same size is seen by who has the file open, and by who has it mapped.
func TestSameSizeRewrite(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			dirs := place(t, "src", "mnt")
			src, mnt := dirs[0], dirs[1]
			text := func(i int) string { return fmt.Sprintf("text %04d %s", i, strings.Repeat("x", 5000)) }
			write(t, src+"/f", text(0))
			d := serve(t, src, mnt, "--watcher="+backend)
			f, err := os.Open(mnt + "/f")
			check(t, err)
			defer f.Close()
			size := len(text(0))
			mapped, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
			check(t, err)
			defer unix.Munmap(mapped)
			host, err := os.OpenFile(src+"/f", os.O_WRONLY, 0)
			check(t, err)
			defer host.Close()
			buf := make([]byte, size)
			for i := 1; i <= 20; i++ {
				_, err := host.WriteAt([]byte(text(i)), 0)
				check(t, err)
				d.sync()
				_, err = f.ReadAt(buf, 0)
				check(t, err)
				if string(buf) != text(i) {
					t.Fatalf("rewrite %d: pread: %.12q", i, buf)
				}
				if string(mapped) != text(i) {
					t.Fatalf("rewrite %d: mmap: %.12q", i, mapped)
				}
			}
		})
	}
}

// What the guest knows to be absent, and what it has listed, changes with the host.
func TestNegativeAndListings(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			dirs := place(t, "src/d", "mnt")
			src, mnt := filepath.Dir(dirs[0]), dirs[1]
			d := serve(t, src, mnt, "--watcher="+backend)
			list := func() string {
				var names []string
				entries, err := os.ReadDir(mnt + "/d")
				check(t, err)
				for _, e := range entries {
					names = append(names, e.Name())
				}
				return strings.Join(names, " ")
			}
			for round := range 20 {
				for _, name := range []string{"a", "b"} {
					if _, err := os.Lstat(mnt + "/d/" + name); !os.IsNotExist(err) {
						t.Fatalf("round %d: %s: %v", round, name, err)
					}
				}
				if got := list(); got != "" {
					t.Fatalf("round %d: listed %q", round, got)
				}
				write(t, src+"/d/a", "x")
				d.sync()
				if _, err := os.Lstat(mnt + "/d/a"); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				if got := list(); got != "a" {
					t.Fatalf("round %d: listed %q", round, got)
				}
				check(t, os.Rename(src+"/d/a", src+"/d/b"))
				d.sync()
				if got := list(); got != "b" {
					t.Fatalf("round %d: listed %q", round, got)
				}
				if _, err := os.Lstat(mnt + "/d/a"); !os.IsNotExist(err) {
					t.Fatalf("round %d: a: %v", round, err)
				}
				check(t, os.Remove(src+"/d/b"))
				d.sync()
			}
		})
	}
}

// After events were lost, the guest sees what the host has, and its watcher has heard something of
// each name that ended different.
func TestOverflow(t *testing.T) {
	needFUSE(t)
	t.Run("inotify", func(t *testing.T) {
		overflow(t, "/proc/sys/fs/inotify/max_queued_events", "--watcher=inotify")
	})
	t.Run("fanotify", func(t *testing.T) {
		overflow(t, "/proc/sys/fs/fanotify/max_queued_events", "--watcher=fanotify", "--limited-queue")
	})
}

func overflow(t *testing.T, limit string, flags ...string) {
	before := read(t, limit)
	dirs := place(t, "src/p/deep", "src/q", "mnt")
	src, mnt := filepath.Dir(dirs[1]), dirs[2]
	w := &world{r: rand.New(rand.NewPCG(1, 2)), top: src}
	for range 100 {
		w.change()
	}
	// The limit is copied when a group is made: only the daemon gets the small one.
	check(t, os.WriteFile(limit, []byte("16"), 0))
	d, said := func() (*daemon, string) {
		defer os.WriteFile(limit, []byte(before), 0)
		return try(t, mountCommand(src, mnt, flags...))
	}()
	if said != "ready" {
		t.Fatalf("%s\n%s", said, d.log)
	}
	d.src, d.mnt, d.troubled = src, mnt, true
	t.Cleanup(func() { d.stop(unix.SIGTERM) })
	alike(t, src, mnt) // the guest knows all of it now
	e := listen(t, mnt, 0xfff&^(unix.IN_OPEN|unix.IN_ACCESS|unix.IN_CLOSE_NOWRITE), "p", "p/deep", "q")
	old := tree(t, src)
	// Who is not stopped can be fast enough to lose nothing.
	check(t, d.cmd.Process.Signal(unix.SIGSTOP))
	for range 3000 {
		w.change()
	}
	check(t, d.cmd.Process.Signal(unix.SIGCONT))
	d.sync()
	check(t, os.Mkdir(src+"/fence", 0o755))
	d.sync()
	e.wait(".", "CREATE,ISDIR fence")
	if !strings.Contains(strings.ToLower(d.log.String()), "overflow") && !strings.Contains(d.log.String(), "lost") {
		t.Fatalf("nothing was lost, so nothing was tested:\n%s", d.log)
	}
	check(t, os.Remove(src+"/fence"))
	d.sync()
	alike(t, src, mnt)
	now := tree(t, src)
	for _, dir := range []string{".", "p", "p/deep", "q"} {
		for i := range 6 {
			name := fmt.Sprintf("n%d", i)
			path := filepath.Join(dir, name)
			if old[path] == now[path] {
				continue
			}
			if !heardOf(e, dir, name) {
				t.Errorf("%s: no event, but before\n  %s\nand now\n  %s", path, old[path], now[path])
			}
		}
	}
}

// heardOf reports whether any event named name on the watch.
func heardOf(e *ear, watch, name string) bool {
	for _, text := range e.story()[watch] {
		if fields := strings.Fields(text); len(fields) > 1 && fields[1] == name {
			return true
		}
	}
	return false
}
