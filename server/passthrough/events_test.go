package passthrough

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// inotifyWatch reads what the host's kernel tells of some directories.
type inotifyWatch struct {
	fd   int
	dirs map[int32]notify.Object
}

func watchHost(t testing.TB, mask uint32, dirs ...string) *inotifyWatch {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	w := &inotifyWatch{fd: fd, dirs: map[int32]notify.Object{}}
	for _, d := range dirs {
		w.add(t, mask, d)
	}
	return w
}

func (w *inotifyWatch) add(t testing.TB, mask uint32, dir string) {
	t.Helper()
	wd, err := unix.InotifyAddWatch(w.fd, dir, mask)
	must(t, err)
	w.dirs[int32(wd)] = objectAt(t, dir)
}

type hostEvent struct {
	dir  notify.Object
	name string
	mask notify.Mask
}

// drain returns what is queued. The kernel queues an event before the call that made it returns.
func (w *inotifyWatch) drain(t testing.TB) (out []hostEvent) {
	t.Helper()
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(w.fd, buf)
		if err == unix.EAGAIN {
			return out
		}
		must(t, err)
		for b := buf[:n]; len(b) > 0; {
			wd := int32(nativeUint32(b))
			mask := notify.Mask(nativeUint32(b[4:]))
			size := nativeUint32(b[12:])
			name := string(bytes.TrimRight(b[16:16+size], "\x00"))
			b = b[16+size:]
			if mask&notify.Ignored != 0 {
				continue
			}
			if name == "" {
				name = "."
			}
			out = append(out, hostEvent{w.dirs[wd], name, mask})
		}
	}
}

func nativeUint32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// bookLedger keeps what was announced.
type bookLedger struct {
	mu       sync.Mutex
	expected []hostEvent
	ended    int
}

func (l *bookLedger) Expect(dir notify.Object, name string, masks ...notify.Mask) func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range masks {
		l.expected = append(l.expected, hostEvent{dir, name, m})
	}
	return func() { l.mu.Lock(); l.ended++; l.mu.Unlock() }
}

func (l *bookLedger) Swallow(r *notify.Raw) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, e := range l.expected {
		if e == (hostEvent{r.Dir, r.Name, r.Mask}) {
			l.expected = append(l.expected[:i], l.expected[i+1:]...)
			return true
		}
	}
	return false
}

func (l *bookLedger) BeginRead() uint64 { return 0 }
func (l *bookLedger) Drained(uint64)    {}

// TestLedgerKnowsEveryEcho does everything that changes the host through the mount, while inotify
// listens on the host: each event has been announced.
func TestLedgerKnowsEveryEcho(t *testing.T) {
	for _, mode := range []HandleMode{HandlePrefer, HandleNever} {
		t.Run(mode.String(), func(t *testing.T) {
			src := t.TempDir()
			must(t, os.Mkdir(src+"/d", 0o755))
			must(t, os.Mkdir(src+"/e", 0o755))
			ledger := &bookLedger{}
			mnt, _ := mountPassthrough(t, src, Options{FileHandles: mode, Ledger: ledger, EntryTimeout: time.Hour, AttrTimeout: time.Hour})
			w := watchHost(t, uint32(notify.DefaultMask), src, src+"/d", src+"/e")
			d, e := mnt+"/d/", mnt+"/e/"
			write := func(path string, flags int) func() error {
				return func() error {
					f, err := os.OpenFile(path, flags, 0o644)
					if err != nil {
						return err
					}
					if _, err := f.WriteString("hello"); err != nil {
						return err
					}
					return f.Close()
				}
			}
			now := time.Now()
			for _, s := range []struct {
				name string
				do   func() error
				min  int // how many events the host's watches have to show
			}{
				{"create", write(d+"f", os.O_CREATE|os.O_WRONLY), 3},
				{"write", write(d+"f", os.O_WRONLY), 2},
				{"append", write(d+"f", os.O_WRONLY|os.O_APPEND), 2},
				{"open to truncate", write(d+"f", os.O_WRONLY|os.O_TRUNC), 2}, // the kernel merges two MODIFY,
				{"truncate", func() error { return os.Truncate(d+"f", 1) }, 1},
				{"chmod", func() error { return os.Chmod(d+"f", 0o600) }, 1},
				{"chown", func() error { return os.Chown(d+"f", 5, 5) }, 1},
				{"utimes", func() error { return os.Chtimes(d+"f", now, now) }, 1},
				{"mtime", func() error { return os.Chtimes(d+"f", time.Time{}, now) }, 1},
				{"setxattr", func() error { return unix.Setxattr(d+"f", "user.x", []byte("1"), 0) }, 1},
				{"removexattr", func() error { return unix.Removexattr(d+"f", "user.x") }, 1},
				{"link", func() error { return os.Link(d+"f", e+"l") }, 1},
				{"symlink", func() error { return os.Symlink("f", d+"s") }, 1},
				{"mkfifo", func() error { return unix.Mkfifo(d+"p", 0o644) }, 1},
				{"mkdir", func() error { return os.Mkdir(d+"sub", 0o755) }, 1},
				{"chmod of a directory", func() error { return os.Chmod(mnt+"/d", 0o711) }, 2},
				{"rename", func() error { return os.Rename(d+"f", d+"g") }, 2},
				{"write after rename", write(d+"g", os.O_WRONLY), 2},
				{"rename across", func() error { return os.Rename(d+"g", e+"g") }, 2},
				{"create another", write(d+"h", os.O_CREATE|os.O_WRONLY), 3},
				{"rename over", func() error { return os.Rename(d+"h", e+"g") }, 2},
				{"exchange", func() error {
					return unix.Renameat2(unix.AT_FDCWD, e+"g", unix.AT_FDCWD, d+"sub", unix.RENAME_EXCHANGE)
				}, 4},
				{"rename a directory", func() error { return os.Rename(e+"g", mnt+"/moved") }, 2},
				{"rename a watched directory", func() error { return os.Rename(mnt+"/e", mnt+"/ee") }, 3},
				{"rmdir", func() error { return os.Remove(mnt + "/moved") }, 1},
				{"unlink a link", func() error { return os.Remove(mnt + "/ee/l") }, 1},
				{"unlink", func() error { return os.Remove(d + "s") }, 1},
				{"fallocate", func() error {
					f, err := os.OpenFile(d+"sub", os.O_RDWR, 0)
					if err != nil {
						return err
					}
					defer f.Close()
					return unix.Fallocate(int(f.Fd()), 0, 0, 100)
				}, 2},
				{"rmdir of a watched directory", func() error { return os.Remove(mnt + "/ee") }, 1},
			} {
				if err := s.do(); err != nil {
					t.Fatalf("%s: %v", s.name, err)
				}
				// RELEASE is not waited for by close: an unrelated open and close of the same file would not
				// be either, so wait for the number of events that is known.
				var got []hostEvent
				for deadline := time.Now().Add(5 * time.Second); len(got) < s.min && time.Now().Before(deadline); {
					poll := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
					unix.Poll(poll, 100)
					got = append(got, w.drain(t)...)
				}
				if len(got) < s.min {
					t.Errorf("%s: only %v", s.name, got)
				}
				for _, e := range got {
					if !ledger.Swallow(&notify.Raw{Mask: e.mask, Dir: e.dir, Name: e.name}) {
						t.Errorf("%s: nobody announced %s %v of %v; expected were %v", s.name, e.mask, e.name, e.dir, ledger.expected)
					}
				}
				ledger.mu.Lock()
				ledger.expected = nil
				ledger.mu.Unlock()
			}
		})
	}
}

// TestWritesAreHeardByName: a file known by handle, whose dentry the host has dropped, is
// opened by name again, so that the host's watchers hear of the write.
func TestWritesAreHeardByName(t *testing.T) {
	src := t.TempDir()
	must(t, os.WriteFile(src+"/f", []byte("x"), 0o644))
	must(t, os.WriteFile(src+"/g", []byte("x"), 0o644))
	fs := newFS(t, src, Options{})
	f, g := mustLookup(t, fs, rootID, "f"), mustLookup(t, fs, rootID, "g")
	w := watchHost(t, unix.IN_MODIFY|unix.IN_ATTRIB, src)
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	write := func(id uint64, name string) {
		t.Helper()
		if err := writeNode(fs, id); err != nil {
			t.Fatal(err)
		}
		if got := w.drain(t); len(got) != 1 || got[0].name != name || got[0].mask != notify.Modify {
			t.Errorf("the host heard %v", got)
		}
	}
	write(f.NodeId, "f")
	must(t, os.Rename(src+"/g", src+"/h"))
	fs.Moved(mustObject(fs, g.NodeId), mustObject(fs, rootID), "h")
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	write(g.NodeId, "h")
}

// bookMarker records marks, and can fail.
type bookMarker struct {
	mu     sync.Mutex
	marked map[notify.Object]int
	fail   bool
	check  func(dir notify.Object)
}

func (m *bookMarker) Mark(dir notify.Object, fd int) error {
	if m.check != nil {
		m.check(dir)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("mark of %o: %v", st.Mode, err)
	}
	if m.fail {
		return unix.ENOSPC
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.marked[dir]++
	return nil
}

func (m *bookMarker) Unmark(dir notify.Object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.marked, dir)
}

func (m *bookMarker) has(dir notify.Object) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.marked[dir] > 0
}

func TestMarksWhatIsKnown(t *testing.T) {
	src := t.TempDir()
	must(t, os.MkdirAll(src+"/a/b", 0o755))
	must(t, os.WriteFile(src+"/a/f", nil, 0o644))
	m := &bookMarker{marked: map[notify.Object]int{}}
	fs, err := New(src, Options{Marker: m, EntryTimeout: time.Hour, AttrTimeout: time.Hour})
	must(t, err)
	if !m.has(objectAt(t, src)) || m.has(objectAt(t, src+"/a")) {
		t.Fatal("the root is marked first, and alone")
	}
	// Many at once: none may be told of the directory before it is marked.
	var wg sync.WaitGroup
	a := objectAt(t, src+"/a")
	for range 8 {
		wg.Go(func() {
			for range 200 {
				out, status := lookup(fs, rootID, "a")
				if !status.Ok() || !m.has(a) {
					t.Errorf("known but not marked: %v", status)
					return
				}
				fs.Forget(out.NodeId, 1)
			}
		})
	}
	wg.Wait()
	if m.has(a) {
		t.Error("forgotten but marked")
	}
	dir := mustLookup(t, fs, rootID, "a")
	mustLookup(t, fs, dir.NodeId, "f")
	if len(m.marked) != 2 {
		t.Errorf("%d marks, want 2", len(m.marked))
	}
	m.fail = true
	b := mustLookup(t, fs, dir.NodeId, "b")
	must(t, os.WriteFile(src+"/a/b/x", nil, 0o644))
	x := mustLookup(t, fs, b.NodeId, "x")
	if b.AttrTimeout() != 0 || x.EntryTimeout() != 0 || x.AttrTimeout() != 0 {
		t.Error("what cannot be watched may be cached")
	}
	if _, status := lookup(fs, b.NodeId, "missing"); status.Ok() {
		t.Error("an absence that cannot be watched may be cached")
	}
	fs.Close()
	if len(m.marked) != 0 {
		t.Errorf("marks left after Close: %v", m.marked)
	}
}

// TestDropLetsTheHostHear: the host's watcher of a removed directory hears DELETE_SELF when
// nothing of ours holds it.
func TestDropLetsTheHostHear(t *testing.T) {
	src := t.TempDir()
	must(t, os.Mkdir(src+"/d", 0o755))
	fs := newFS(t, src, Options{})
	d := mustLookup(t, fs, rootID, "d")
	obj := mustObject(fs, d.NodeId)
	w := watchHost(t, unix.IN_DELETE_SELF, filepath.Join(src, "d"))
	must(t, os.Remove(src+"/d"))
	if got := w.drain(t); len(got) != 0 {
		t.Fatalf("%v although a descriptor is cached", got)
	}
	fs.Drop(obj)
	if got := w.drain(t); len(got) != 1 || got[0].mask&notify.DeleteSelf == 0 {
		t.Errorf("after Drop: %v", got)
	}
}
