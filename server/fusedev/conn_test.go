package fusedev

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/heraldfs/heraldfs/internal/testenv"
	"golang.org/x/sys/unix"
)

func outputOf(cmd *exec.Cmd) ([]byte, error) {
	cmd.Stderr = nil
	return cmd.CombinedOutput()
}

func TestMountAndInit(t *testing.T) {
	m := newMemFS()
	conn := serve(t, m, Options{FSName: "a,b", ReadAheadKB: 512})
	st, err := os.Stat(filepath.Join(conn.Mountpoint(), "file"))
	if err != nil || st.Size() != 3 {
		t.Fatalf("stat: %v, %v", st, err)
	}
	entries, err := readMounts()
	if err != nil {
		t.Fatal(err)
	}
	e, ok := conn.find(entries)
	if !ok || e.fsType != "fuse.heraldfs" || e.point != conn.Mountpoint() || !conn.Mounted() {
		t.Errorf("mount entry %+v, %v", e, ok)
	}
	in := conn.InitIn()
	if h := (&hand{in: in}); len(in) < inHeaderSize || h.opcode() != opInit {
		t.Errorf("INIT request % x", in)
	}
	out := conn.Negotiated()
	if out.Major != 7 || out.MaxWrite != defaultMaxWrite || out.Flags64()&fuse.CAP_MAX_PAGES == 0 {
		t.Errorf("negotiated %+v", out)
	}
	kb, err := os.ReadFile("/sys/class/bdi/0:" + itoa(conn.Device()) + "/read_ahead_kb")
	if err != nil || strings.TrimSpace(string(kb)) != "512" {
		t.Errorf("readahead %q, %v", kb, err)
	}
}

func TestLargeIO(t *testing.T) {
	m := newMemFS()
	m.content = make([]byte, 3<<20+17)
	for i := range m.content {
		m.content[i] = byte(i * 7 >> 3)
	}
	conn := serve(t, m, Options{})
	got, err := os.ReadFile(filepath.Join(conn.Mountpoint(), "file"))
	if err != nil || string(got) != string(m.content) {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
}

func TestExternalUnmount(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	m := newMemFS()
	conn, err := Mount(t.TempDir(), m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	done := start(t, conn)
	if err := unix.Unmount(conn.Mountpoint(), 0); err != nil {
		t.Fatal(err)
	}
	if err := await(t, "Serve ends", done); err != nil {
		t.Fatal(err)
	}
	await(t, "Unmounted is closed", conn.Unmounted())
	if m.ends != 1 {
		t.Errorf("OnUnmount was called %d times", m.ends)
	}
	if err := conn.Unmount(); err != nil {
		t.Errorf("unmounting again: %v", err)
	}
	if err := conn.Notify().InvalInode(1, 0, 0); err == nil {
		t.Error("a notification after the end succeeded")
	}
}

func TestUnmountBusyThenClose(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	conn, err := Mount(t.TempDir(), newMemFS(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	done := start(t, conn)
	f, err := os.Open(filepath.Join(conn.Mountpoint(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := conn.Unmount(); !errors.Is(err, ErrBusy) || !conn.Mounted() {
		t.Fatalf("unmount of a mount in use: %v", err)
	}
	within(t, "close", conn.Close)
	if err := await(t, "Serve ends", done); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("fsync of a file that was open: %v", err)
	}
	if entries, _ := os.ReadDir(conn.Mountpoint()); len(entries) != 0 || conn.Mounted() {
		t.Error("still mounted")
	}
}

func TestContextEndsServe(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	conn, err := Mount(t.TempDir(), newMemFS(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- conn.Serve(ctx) }()
	if err := conn.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := await(t, "Serve ends", done); err != nil || conn.Mounted() {
		t.Fatalf("%v, mounted %v", err, conn.Mounted())
	}
	if err := conn.Serve(ctx); err == nil {
		t.Error("served twice")
	}
}

func TestCloseWithoutServe(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	conn, err := Mount(t.TempDir(), newMemFS(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	within(t, "close", conn.Close)
	within(t, "close again", conn.Close)
	if conn.Mounted() {
		t.Error("still mounted")
	}
	if err := conn.WaitReady(context.Background()); err == nil {
		t.Error("ready after Close")
	}
}

func TestMovedMount(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	// A mount below a shared one cannot be moved.
	base := t.TempDir()
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(base, unix.MNT_DETACH)
	if err := unix.Mount("", base, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	from, to := filepath.Join(base, "from here"), filepath.Join(base, "to")
	for _, dir := range []string{from, to} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := Mount(from, newMemFS(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	start(t, conn)
	if err := unix.Mount(from, to, "", unix.MS_MOVE, ""); err != nil {
		t.Fatal(err)
	}
	if err := conn.Unmount(); err != nil || conn.Mounted() {
		t.Errorf("unmount after a move: %v", err)
	}
}

func TestMountErrors(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, point string
		opts        Options
		want        error
		says        string
	}{
		{"missing", filepath.Join(dir, "none"), Options{}, unix.ENOENT, "mkdir"},
		{"file", file, Options{}, unix.ENOTDIR, file},
		{"bad option", dir, Options{ExtraData: []string{"no_such_option"}}, unix.EINVAL, "no_such_option"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := Mount(c.point, newMemFS(), c.opts)
			if err == nil {
				_ = conn.Close()
				t.Fatal("mounted")
			}
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want %v and %q", err, c.want, c.says)
			}
		})
	}
}

func TestPanicIsEIO(t *testing.T) {
	m := newMemFS()
	conn := serve(t, m, Options{})
	m.setHook(func(op string, _ uint64, _ <-chan struct{}) fuse.Status {
		if op == "lookup" {
			panic("test")
		}
		return fuse.OK
	})
	if _, err := os.Stat(filepath.Join(conn.Mountpoint(), "file")); !errors.Is(err, syscall.EIO) {
		t.Errorf("stat with a handler that panics: %v", err)
	}
	m.setHook(nil)
	if _, err := os.Stat(filepath.Join(conn.Mountpoint(), "file")); err != nil {
		t.Errorf("stat afterwards: %v", err)
	}
}
