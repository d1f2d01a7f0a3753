package fusedev

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
)

func TestBackingMap(t *testing.T) {
	var m backingMap
	if unsafe.Sizeof(m) != 16 || unsafe.Offsetof(m.flags) != 4 || unsafe.Offsetof(m.padding) != 8 {
		t.Errorf("%d bytes, flags at %d, padding at %d", unsafe.Sizeof(m), unsafe.Offsetof(m.flags), unsafe.Offsetof(m.padding))
	}
	if iocBackingOpen != 0x4010e501 || iocBackingClose != 0x4004e502 {
		t.Errorf("%#x, %#x", iocBackingOpen, iocBackingClose)
	}
}

// TestBacking has the kernel hold a file, and refuses where that was not negotiated or everything has ended.
func TestBacking(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)

	var without Options
	without.Fuse.DisabledCapabilities = fuse.CAP_PASSTHROUGH
	c := serve(t, newMemFS(), without)
	if err := c.WaitReady(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.BackingOpen(fd); !errors.Is(err, notify.ErrNotSupported) {
		t.Errorf("without the capability: %v", err)
	}

	c = serve(t, newMemFS(), Options{Fuse: fuse.MountOptions{ExtraCapabilities: fuse.CAP_PASSTHROUGH, MaxStackDepth: 1}})
	if err := c.WaitReady(context.Background()); err != nil {
		t.Fatal(err)
	}
	if out := c.Negotiated(); out.Flags64()&fuse.CAP_PASSTHROUGH == 0 {
		testenv.Lack(t, "no FUSE passthrough in this kernel")
	}
	id, err := c.BackingOpen(fd)
	if err != nil || id == 0 {
		t.Fatalf("id %d, %v", id, err)
	}
	if err := c.BackingClose(id); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := c.BackingClose(id); err == nil {
		t.Error("closed twice")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.BackingOpen(fd); !errors.Is(err, notify.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	if err := c.BackingClose(id); !errors.Is(err, notify.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}
