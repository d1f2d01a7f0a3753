//go:build linux

package watcher_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/watcher"
)

func needRoot(t testing.TB) {
	t.Helper()
	testenv.Need(t, testenv.Root)
}

func mountAt(t *testing.T, source, fstype, data string) string {
	t.Helper()
	dir := t.TempDir()
	mountOn(t, dir, source, fstype, data)
	return dir
}

func mountOn(t *testing.T, dir, source, fstype, data string) {
	t.Helper()
	needRoot(t)
	if err := unix.Mount(source, dir, fstype, 0, data); err != nil {
		t.Fatalf("mount %s: %v", fstype, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil && err != unix.EINVAL {
			t.Errorf("unmount %s: %v", dir, err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
}

func overlay(t *testing.T) string {
	t.Helper()
	layers := mountAt(t, "heraldfs-test", "tmpfs", "")
	for _, d := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(layers, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return mountAt(t, "overlay", "overlay",
		"lowerdir="+layers+"/lower,upperdir="+layers+"/upper,workdir="+layers+"/work")
}

// btrfs returns the top of a new btrfs, with a subvolume "sub" in it.
func btrfs(t *testing.T) string {
	t.Helper()
	needRoot(t)
	testenv.NeedTool(t, "mkfs.btrfs", "btrfs", "losetup")
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 128<<20); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.btrfs", "-q", image)
	loop := strings.TrimSpace(run(t, "losetup", "--find", "--show", image))
	t.Cleanup(func() { run(t, "losetup", "--detach", loop) })
	top := mountAt(t, loop, "btrfs", "")
	run(t, "btrfs", "subvolume", "create", top+"/sub")
	return top
}

// loopback is a FUSE file system over tmpfs, served by this process.
func loopback(t *testing.T) string {
	t.Helper()
	needRoot(t)
	node, err := fs.NewLoopbackRoot(mountAt(t, "heraldfs-test", "tmpfs", ""))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	server, err := fs.Mount(dir, node, &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "heraldfs-test"}})
	if err != nil {
		t.Fatalf("mount FUSE: %v", err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Errorf("unmount FUSE: %v", err)
		}
	})
	return dir
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s %v: %v", name, args, err)
	}
	return string(out)
}

var backends = []struct {
	name string
	opts watcher.Options
}{
	{"fanotify", watcher.Options{Backend: watcher.Fanotify}},
	{"fanotify-inode", watcher.Options{Backend: watcher.Fanotify, ForceInodeMarks: true}},
	{"inotify", watcher.Options{Backend: watcher.Inotify}},
}

// TestScripts runs every script with every backend on every kind of file system.
func TestScripts(t *testing.T) {
	needRoot(t)
	kinds := []struct {
		name string
		make func(*testing.T) string
		// want is what the fanotify backend shall turn out to be.
		want string
	}{
		{"ext4", func(t *testing.T) string { return t.TempDir() }, watcher.Fanotify},
		{"tmpfs", func(t *testing.T) string { return mountAt(t, "heraldfs-test", "tmpfs", "") }, watcher.Fanotify},
		{"overlay", overlay, watcher.FanotifyInode},
		{"fuse", loopback, watcher.FanotifyInode},
		{"btrfs", btrfs, watcher.Fanotify},
		{"subvolume", func(t *testing.T) string { return filepath.Join(btrfs(t), "sub") }, watcher.FanotifyInode},
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			base := k.make(t)
			w, err := watcher.Open(watcher.Options{Root: base, Backend: watcher.Fanotify})
			if err != nil {
				t.Fatal(err)
			}
			if w.Backend != k.want {
				t.Errorf("backend %s (%s), want %s", w.Backend, w.Why, k.want)
			}
			w.Close()
			for _, be := range backends {
				t.Run(be.name, func(t *testing.T) { runScripts(t, base, be.opts) })
			}
		})
	}
}
