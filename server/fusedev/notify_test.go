package fusedev

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/fusenotify"
	"golang.org/x/sys/unix"
)

// requests returns how many requests of op f causes.
func requests(m *memFS, op string, f func()) int {
	before := m.count(op)
	f()
	return m.count(op) - before
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st
}

func TestNotifyInvalInode(t *testing.T) {
	m := newMemFS()
	conn := serve(t, m, Options{Fuse: fuse.MountOptions{ExplicitDataCacheControl: true}})
	path := filepath.Join(conn.Mountpoint(), "file")
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	page, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page)
	// A page fault on our own mount could hang the runtime: bring the page in by a
	// system call first, each time.
	read := func() string {
		b := make([]byte, 16)
		n, err := unix.Pread(fd, b, 0)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	if got := read(); got != "old" || string(page[:3]) != "old" {
		t.Fatalf("read %q, mapped %q", got, page[:3])
	}
	m.set("new")
	if n := requests(m, "read", func() { read() }); n != 0 || read() != "old" {
		t.Fatalf("pages are not cached: %d reads", n)
	}

	// A negative offset drops attributes only.
	if err := conn.Notify().InvalInode(memFile, -1, 0); err != nil {
		t.Fatal(err)
	}
	if n := requests(m, "getattr", func() { stat(t, path) }); n != 1 || read() != "old" {
		t.Errorf("after a negative offset: %d GETATTR, read %q", n, read())
	}
	if n := requests(m, "getattr", func() { stat(t, path) }); n != 0 {
		t.Errorf("attributes are not cached: %d GETATTR", n)
	}
	if err := conn.Notify().InvalInode(memFile, 0, 0); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "new" || string(page[:3]) != "new" {
		t.Errorf("read %q, mapped %q", got, page[:3])
	}
	if err := conn.Notify().Store(memFile, 0, []byte("put")); err != nil {
		t.Fatal(err)
	}
	if n := requests(m, "read", func() { read() }); n != 0 || read() != "put" {
		t.Errorf("after STORE: %d reads, %q", n, read())
	}
	if err := conn.Notify().InvalInode(4711, 0, 0); !errors.Is(err, fusenotify.ErrNotCached) {
		t.Errorf("an inode that the kernel does not know: %v", err)
	}
}

func TestNotifyInvalEntry(t *testing.T) {
	m := newMemFS()
	conn := serve(t, m, Options{})
	sub := filepath.Join(conn.Mountpoint(), "dir", "sub")
	stat(t, sub)
	if n := requests(m, "lookup", func() { stat(t, sub) }); n != 0 {
		t.Fatalf("entries are not cached: %d LOOKUP", n)
	}
	// Something mounted on dir survives an expiry and not the other kind.
	dir := filepath.Dir(sub)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	mounted := func() bool {
		entries, err := readMounts()
		if err != nil {
			t.Fatal(err)
		}
		_, ok := topMount(entries, dir)
		return ok
	}
	if err := conn.Notify().InvalEntry(memRoot, "dir", true); err != nil {
		t.Fatal(err)
	}
	if n := requests(m, "lookup", func() { stat(t, dir) }); n != 1 || !mounted() {
		t.Errorf("after the expiry: %d LOOKUP, mounted %v", n, mounted())
	}
	if n := requests(m, "lookup", func() { stat(t, dir) }); n != 0 {
		t.Errorf("the expired entry is not cached again: %d LOOKUP", n)
	}
	if err := conn.Notify().InvalEntry(memRoot, "dir", false); err != nil {
		t.Fatal(err)
	}
	if mounted() {
		t.Error("a full invalidation left the mount")
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
	if n := requests(m, "lookup", func() { stat(t, sub) }); n != 2 {
		t.Errorf("after the invalidation: %d LOOKUP", n)
	}
	if err := conn.Notify().InvalEntry(memRoot, "none", true); !errors.Is(err, fusenotify.ErrNotCached) {
		t.Errorf("a name that the kernel does not know: %v", err)
	}
}

func TestNotifyDelete(t *testing.T) {
	m := newMemFS()
	conn := serve(t, m, Options{})
	path := filepath.Join(conn.Mountpoint(), "file")
	stat(t, path)
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, path, unix.IN_DELETE_SELF); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	m.absent["file"] = true
	m.mu.Unlock()
	if err := conn.Notify().Delete(memRoot, memFile, "file"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat: %v", err)
	}
	buf := make([]byte, 4096)
	if n, err := unix.Read(watch, buf); err != nil || n < unix.SizeofInotifyEvent {
		t.Errorf("no DELETE_SELF: %d, %v", n, err)
	}
}

// newCode says whether this kernel took a code that it may lack.
func newCode(t *testing.T, err error) bool {
	t.Helper()
	if errors.Is(err, notify.ErrNotSupported) {
		t.Log(err)
		return false
	}
	if err != nil {
		t.Error(err)
		return false
	}
	return true
}

func TestNotifyIncEpoch(t *testing.T) {
	m := newMemFS()
	conn := serve(t, m, Options{})
	sub := filepath.Join(conn.Mountpoint(), "dir", "sub")
	stat(t, sub)
	if n := requests(m, "lookup", func() { stat(t, sub) }); n != 0 {
		t.Fatalf("entries are not cached: %d LOOKUP", n)
	}
	if newCode(t, conn.Notify().IncEpoch()) {
		if n := requests(m, "lookup", func() { stat(t, sub) }); n != 2 {
			t.Errorf("after INC_EPOCH: %d LOOKUP", n)
		}
	}
}

func TestNotifyPrune(t *testing.T) {
	m := newMemFS()
	conn := serve(t, m, Options{})
	stat(t, filepath.Join(conn.Mountpoint(), "file"))
	forgot := make(chan uint64, 8)
	m.setHook(func(op string, id uint64, _ <-chan struct{}) fuse.Status {
		if op == "forget" {
			forgot <- id
		}
		return fuse.OK
	})
	if newCode(t, conn.Notify().Prune(memFile, 4711)) {
		if id := await(t, "FORGET", forgot); id != memFile {
			t.Errorf("FORGET of %d", id)
		}
	}
}

// TestNotifyResend has a request that is being worked on come a second time.
func TestNotifyResend(t *testing.T) {
	m := newMemFS()
	// The kernel sends again only what was read from the device.
	conn := serve(t, m, Options{IOURing: IOURingOff})
	dir := filepath.Join(conn.Mountpoint(), "dir")
	stat(t, dir)
	hook, entered, release := blockOn("getattr")
	m.setHook(hook)
	done := make(chan error, 1)
	go func() {
		var st unix.Stat_t
		done <- unix.Stat(dir, &st)
	}()
	await(t, "GETATTR", entered)
	if newCode(t, conn.Notify().Resend()) {
		await(t, "GETATTR again", entered)
	}
	close(release)
	if err := await(t, "stat ends", done); err != nil {
		t.Error(err)
	}
}
