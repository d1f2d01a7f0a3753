package passthrough

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
)

// mountPassing mounts src with caches and passthrough of files of a page and more.
func mountPassing(t *testing.T, src string) (mnt string, fs *FS) {
	t.Helper()
	backing := &testBacking{}
	mnt, fs = mountPassthrough(t, src, Options{
		EntryTimeout: time.Hour, AttrTimeout: time.Hour, NegativeTimeout: time.Hour, NoOpendir: true, KeepCache: true,
		Backing: backing, PassthroughMin: 4096,
	})
	if backing.srv.KernelSettings().Flags64()&fuse.CAP_PASSTHROUGH == 0 {
		testenv.Lack(t, "no FUSE passthrough in this kernel")
	}
	return mnt, fs
}

// nodeAt returns the node of a file in the mount.
func nodeAt(t *testing.T, fs *FS, path string) *node {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	for _, n := range fs.nodes.all() {
		if _, name := n.hint(); name == filepath.Base(path) {
			return n
		}
	}
	t.Fatalf("%s is not known", path)
	return nil
}

func (n *node) state() (opens, backing int32) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.heldLocked()
	return h.opens, h.backing
}

// TestPassingModes: every way to open a file while it is passed through works, and reads what was written.
func TestPassingModes(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	src := testenv.Tmpfs(t)
	host := filepath.Join(src, "f")
	must(t, os.WriteFile(host, bytes.Repeat([]byte("a"), 1<<20), 0o644))
	mnt, fs := mountPassing(t, src)
	path := filepath.Join(mnt, "f")
	n := nodeAt(t, fs, path)
	reader, err := os.Open(path)
	must(t, err)
	defer reader.Close()
	if !fs.Passing(n.id) {
		t.Fatal("a large file is not passed through")
	}
	at := func(off int64, want byte) {
		t.Helper()
		var b [1]byte
		if _, err := reader.ReadAt(b[:], off); err != nil || b[0] != want {
			t.Errorf("at %d: %q, %v; want %q", off, b[0], err, want)
		}
	}
	at(5000, 'a')
	for i, flags := range []int{os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_CREATE, os.O_RDWR | os.O_SYNC, os.O_RDWR | unix.O_DIRECT} {
		f, err := os.OpenFile(path, flags, 0o644)
		if err != nil {
			t.Fatalf("open %#x: %v", flags, err)
		}
		if flags&unix.O_ACCMODE != os.O_RDONLY && flags&(os.O_APPEND|unix.O_DIRECT) == 0 {
			_, err := f.WriteAt([]byte{byte('b' + i)}, int64(6000+i))
			must(t, err)
			at(int64(6000+i), byte('b'+i))
		}
		must(t, f.Close())
	}
	// The host's change is read at once, and the writer's own reads go to the host as well.
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	h, err := os.OpenFile(host, os.O_RDWR, 0)
	must(t, err)
	_, err = h.WriteAt([]byte("H"), 7000)
	must(t, err)
	at(7000, 'H')
	var b [1]byte
	if _, err := w.ReadAt(b[:], 7000); err != nil || b[0] != 'H' {
		t.Errorf("the writer reads %q, %v", b[0], err)
	}
	// A mapping of the writer's is one of the file.
	m, err := unix.Mmap(int(w.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	m[7001] = 'M'
	at(7001, 'M')
	if _, err := h.ReadAt(b[:], 7001); err != nil || b[0] != 'M' {
		t.Errorf("the host reads %q, %v", b[0], err)
	}
	must(t, unix.Munmap(m))
	must(t, h.Close())
	if fi, err := w.Stat(); err != nil || fi.Size() != 1<<20 {
		t.Errorf("size %v, %v", fi.Size(), err)
	}
	must(t, w.Truncate(8000))
	if _, err := reader.ReadAt(b[:], 8000); err == nil {
		t.Error("a reader reads past the end")
	}
	must(t, w.Close())
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	must(t, err)
	must(t, f.Close())
	if fi, err := reader.Stat(); err != nil || fi.Size() != 0 {
		t.Errorf("size %v, %v after O_TRUNC", fi.Size(), err)
	}
	must(t, reader.Close())
	within(t, "the kernel lets go", func() bool { opens, id := n.state(); return opens == 0 && id == 0 })
}

// TestPassingKeepsCoherent: what was written beside passthrough is read by whoever opens the file after it, from
// the kernel's cache as well.
func TestPassingKeepsCoherent(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	src := testenv.Tmpfs(t)
	must(t, os.WriteFile(filepath.Join(src, "f"), bytes.Repeat([]byte("a"), 64<<10), 0o644))
	mnt, fs := mountPassing(t, src)
	path := filepath.Join(mnt, "f")
	n := nodeAt(t, fs, path)
	cached := func() byte { // opened for writing, so by the cache
		t.Helper()
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		defer f.Close()
		var b [1]byte
		_, err = f.ReadAt(b[:], 100)
		must(t, err)
		return b[0]
	}
	idle := func() {
		t.Helper()
		within(t, "the kernel lets go", func() bool { opens, id := n.state(); return opens == 0 && id == 0 })
	}
	if got := cached(); got != 'a' || fs.Passing(n.id) {
		t.Fatalf("%q, passing %v", got, fs.Passing(n.id))
	}
	idle()
	reader, err := os.Open(path)
	must(t, err)
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	m, err := unix.Mmap(int(w.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	must(t, w.Close())
	must(t, reader.Close())
	idle()
	// The mapping is of the file on the host still, so nobody may use the cache.
	m[100] = 'b'
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	if opens, _ := n.state(); opens != -1 {
		t.Errorf("%d opens beside a mapping", opens)
	}
	for _, c := range []byte("cd") {
		m[100] = c
		var b [1]byte
		if _, err := f.ReadAt(b[:], 100); err != nil || b[0] != c {
			t.Errorf("%q, %v; want %q", b[0], err, c)
		}
	}
	must(t, f.Close())
	must(t, unix.Munmap(m))
	idle()
	// A reader finds that it has ended.
	reader, err = os.Open(path)
	must(t, err)
	must(t, reader.Close())
	idle()
	if got := cached(); got != 'd' {
		t.Errorf("the cache has %q", got)
	}
	if n.is(mapped | rewritten) {
		t.Error("a mapping that is gone is remembered")
	}
}

// TestPassingPrograms: a program can be run, its file removed and locked while it is passed through.
func TestPassingPrograms(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	src := testenv.Tmpfs(t)
	prog, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(src, "f"), prog, 0o755))
	mnt, fs := mountPassing(t, src)
	path := filepath.Join(mnt, "f")
	n := nodeAt(t, fs, path)
	out, err := exec.Command(path, "-test.list=TestPassingPrograms").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("TestPassingPrograms")) {
		t.Errorf("%v: %s", err, out)
	}
	a, err := os.Open(path)
	must(t, err)
	defer a.Close()
	b, err := os.Open(path)
	must(t, err)
	defer b.Close()
	must(t, unix.Flock(int(a.Fd()), unix.LOCK_EX))
	if err := unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Errorf("a second lock: %v", err)
	}
	if off, err := unix.Seek(int(a.Fd()), 0, unix.SEEK_HOLE); err != nil || off == 0 {
		t.Errorf("SEEK_HOLE: %d, %v", off, err)
	}
	must(t, os.Remove(filepath.Join(src, "f")))
	got := make([]byte, len(prog))
	if _, err := a.ReadAt(got, 0); err != nil || !bytes.Equal(got, prog) {
		t.Errorf("read after the host has removed it: %v", err)
	}
	if c, err := os.Open(path); err == nil {
		c.Close() // the dentry is cached: nobody has told of the removal
	} else if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESTALE) {
		t.Errorf("open of what is gone: %v", err)
	}
	a.Close()
	b.Close()
	within(t, "the kernel lets go", func() bool { opens, id := n.state(); return opens == 0 && id == 0 })
}

// TestPassingRaces opens and closes one file in all ways at once, also as a replayer does: no open fails, and nothing is left.
func TestPassingRaces(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	src := testenv.Tmpfs(t)
	must(t, os.WriteFile(filepath.Join(src, "f"), make([]byte, 1<<20), 0o644))
	mnt, fs := mountPassing(t, src)
	path := filepath.Join(mnt, "f")
	n := nodeAt(t, fs, path)
	var all sync.WaitGroup
	for worker := range uint64(8) {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(worker, 3))
			for range 400 {
				flags := []int{os.O_RDONLY, os.O_RDONLY, os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | unix.O_DIRECT}[rng.IntN(6)]
				f, err := os.OpenFile(path, flags, 0)
				if err != nil {
					t.Errorf("open %#x: %v", flags, err)
					return
				}
				var out fuse.OpenOut
				fs.OpenBeside(n.id, &out)
				if out.OpenFlags&fuse.FOPEN_PASSTHROUGH != 0 && out.BackingID == 0 {
					t.Error("passed without a backing file")
				}
				fs.ReleaseBeside(n.id)
				if err := f.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			}
		})
	}
	all.Wait()
	within(t, "the kernel lets go", func() bool { opens, id := n.state(); return opens == 0 && id == 0 })
	if fs.Passed() == 0 {
		t.Error("nothing was passed through")
	}
}

// TestNotPassed: where passthrough does not work files are opened as ever.
func TestNotPassed(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	for name, c := range map[string]struct {
		src  func(testing.TB) string
		opts Options
	}{
		"stacked":       {testenv.Overlay, Options{}},
		"heard":         {testenv.Tmpfs, Options{Unheard: func(int) error { return notify.ErrNotSupported }}},
		"no handles":    {testenv.Tmpfs, Options{FileHandles: HandleNever, Unheard: func(int) error { return nil }}},
		"without opens": {testenv.Tmpfs, Options{NoOpen: true}},
	} {
		t.Run(name, func(t *testing.T) {
			src := c.src(t)
			must(t, os.WriteFile(filepath.Join(src, "f"), make([]byte, 1<<20), 0o644))
			c.opts.Backing, c.opts.KeepCache = &testBacking{}, true
			mnt, fs := mountPassthrough(t, src, c.opts)
			for range 3 {
				got, err := os.ReadFile(filepath.Join(mnt, "f"))
				if err != nil || len(got) != 1<<20 {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			}
			if fs.Passed() != 0 {
				t.Error("passed through")
			}
		})
	}
}
