package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// The mount point may be inside of SOURCE.
func TestMountPointInsideSource(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			dirs := place(t, "src/sub", "src/mnt")
			src, mnt := filepath.Dir(dirs[0]), dirs[1]
			d := serve(t, src, mnt, "--watcher="+backend)
			native, guest := listen(t, src, notify.DefaultMask, "sub"), listen(t, mnt, notify.DefaultMask, "sub")
			write(t, src+"/f", "x")
			check(t, os.Rename(src+"/f", src+"/sub/f"))
			write(t, mnt+"/sub/own", "x")
			d.sync()
			fenced(t, src, native, guest)
			for _, e := range []*ear{native, guest} {
				for _, s := range []sound{{".", "CREATE f"}, {"sub", "MOVED_TO f (1)"}, {"sub", "CREATE own"}} {
					if n := e.count(s.watch, s.text); n != 1 {
						t.Errorf("%v: %d times", s, n)
					}
				}
			}
			// The mount does not show itself again.
			if entries, err := os.ReadDir(mnt + "/mnt"); !errors.Is(err, unix.ELOOP) {
				t.Errorf("in itself: %v %v", entries, err)
			}
		})
	}
}

// File systems below SOURCE are heard, too, whenever they are mounted.
func TestSubmounts(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			dirs := place(t, "src/before", "src/after", "mnt")
			src, mnt := filepath.Dir(dirs[0]), dirs[2]
			tmpfs := func(dir string) {
				check(t, unix.Mount("none", dir, "tmpfs", 0, ""))
				t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
			}
			tmpfs(dirs[0])
			d := serve(t, src, mnt, "--watcher="+backend)
			guest := listen(t, mnt, notify.DefaultMask, "before")
			write(t, dirs[0]+"/f", "in the first")
			guest.wait("before", "CLOSE_WRITE f")
			if got := read(t, mnt+"/before/f"); got != "in the first" {
				t.Errorf("read %q", got)
			}
			guest.close()

			write(t, dirs[1]+"/covered", "x")
			d.sync()
			if _, err := os.Stat(mnt + "/after/covered"); err != nil {
				t.Error(err)
			}
			tmpfs(dirs[1])
			// A mount is no change of the directory: it shows within a moment, and not by sync.
			eventually(t, "the new mount shows", func() bool {
				_, err := os.Stat(mnt + "/after/covered")
				return os.IsNotExist(err)
			})
			late := listen(t, mnt, notify.DefaultMask, "after")
			write(t, dirs[1]+"/g", "in the second")
			late.wait("after", "CLOSE_WRITE g")
			if got := read(t, mnt+"/after/g"); got != "in the second" {
				t.Errorf("read %q", got)
			}
			late.close()
			check(t, unix.Unmount(dirs[1], unix.MNT_DETACH))
			eventually(t, "what was covered shows again", func() bool {
				_, err := os.Stat(mnt + "/after/covered")
				return err == nil
			})
			again := listen(t, mnt, notify.DefaultMask, "after")
			write(t, dirs[1]+"/h", "x")
			again.wait("after", "CLOSE_WRITE h")
		})
	}
}

// All of the machine, to look at.
func TestRootAsSource(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			dirs := place(t, "mnt", "changing")
			mnt, changing := dirs[0], dirs[1]
			serve(t, "/", mnt, "--read-only", "--watcher="+backend)
			guest := listen(t, mnt+changing, notify.DefaultMask)
			write(t, changing+"/f", "x")
			guest.wait(".", "CLOSE_WRITE f")
			if got := read(t, mnt+changing+"/f"); got != "x" {
				t.Errorf("read %q", got)
			}
		})
	}
}
