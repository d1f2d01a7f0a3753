//go:build linux

package watcher_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// TestUnheard: what is done through a mount that was passed over is not heard of, and all else is.
func TestUnheard(t *testing.T) {
	needRoot(t)
	for _, be := range backends {
		t.Run(be.name, func(t *testing.T) {
			o := be.opts
			o.Mask = notify.AllMask
			b := newBed(t, mountAt(t, "heraldfs-test", "tmpfs", ""), o)
			if err := os.WriteFile(b.path("f"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			tree, err := unix.OpenTree(unix.AT_FDCWD, b.path("."), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(tree)
			clone, err := sys.Reopen(tree, unix.O_RDONLY|unix.O_DIRECTORY)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(clone)
			err = b.w.Unheard(clone)
			if filesystem := b.w.Marker == nil; filesystem != (err == nil) || !filesystem && !errors.Is(err, notify.ErrNotSupported) {
				t.Fatalf("Unheard: %v", err)
			}
			if err != nil {
				return
			}
			b.fence()
			write := func(dir int) {
				t.Helper()
				fd, err := unix.Openat(dir, "f", unix.O_RDWR|unix.O_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				_, err = unix.Write(fd, []byte("x"))
				if err := errors.Join(err, unix.Close(fd)); err != nil {
					t.Fatal(err)
				}
			}
			write(clone)
			for _, ev := range b.fence() {
				if ev.Name == "f" {
					t.Errorf("heard of %v", ev)
				}
			}
			dir, err := unix.Open(b.path("."), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(dir)
			write(dir)
			heard := map[notify.Op]bool{}
			for _, ev := range b.fence() {
				if ev.Name == "f" {
					heard[ev.Op] = true
				}
			}
			for _, op := range []notify.Op{notify.OpOpen, notify.OpModify, notify.OpCloseWrite} {
				if !heard[op] {
					t.Errorf("not heard: %v", op)
				}
			}
		})
	}
}
