package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// FileSystem is a kind of file system that a test can have.
type FileSystem struct {
	Name string
	// Make mounts a fresh one and returns where; it is gone with the test.
	Make func(testing.TB) string
}

// FileSystems lists all kinds.
func FileSystems() []FileSystem {
	return []FileSystem{
		{"ext4", Ext4}, {"tmpfs", Tmpfs}, {"xfs", XFS}, {"btrfs", Btrfs},
		{"btrfs-subvolume", BtrfsSubvolume}, {"overlay", Overlay},
	}
}

// Sizes of the images. They are sparse; xfs and btrfs refuse smaller ones.
const (
	ext4Size  = 256 << 20
	xfsSize   = 320 << 20
	btrfsSize = 256 << 20
)

// Ext4 mounts a fresh ext4 file system.
func Ext4(t testing.TB) string {
	t.Helper()
	return image(t, ext4Size, "ext4", "mkfs.ext4", "-q", "-F")
}

// XFS mounts a fresh xfs file system.
func XFS(t testing.TB) string {
	t.Helper()
	return image(t, xfsSize, "xfs", "mkfs.xfs", "-q", "-f")
}

// Btrfs mounts a fresh btrfs file system by its top volume.
func Btrfs(t testing.TB) string {
	t.Helper()
	return image(t, btrfsSize, "btrfs", "mkfs.btrfs", "-q", "-f")
}

// BtrfsSubvolume returns a subvolume of a fresh btrfs file system, mounted as the
// top volume. The kernel refuses a fanotify file system mark on it.
func BtrfsSubvolume(t testing.TB) string {
	t.Helper()
	tool := NeedTool(t, "btrfs")
	sub := filepath.Join(Btrfs(t), "sub")
	run(t, tool, "-q", "subvolume", "create", sub)
	return sub
}

// Tmpfs mounts a fresh tmpfs.
func Tmpfs(t testing.TB) string {
	t.Helper()
	return Mount(t, "tmpfs", "tmpfs", 0, "size=512m,mode=0755")
}

// Overlay mounts an overlayfs whose layers are directories of one tmpfs.
func Overlay(t testing.TB) string {
	t.Helper()
	Need(t, OverlayFS)
	layers := Tmpfs(t)
	var paths [3]string
	for i, name := range [...]string{"lower", "upper", "work"} {
		paths[i] = filepath.Join(layers, name)
		if err := os.Mkdir(paths[i], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Mount(t, "overlay", "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", paths[0], paths[1], paths[2]))
}

// Mount mounts source on a new directory and returns that. It is unmounted when
// the test ends; if something keeps it busy by then, the test fails.
func Mount(t testing.TB, source, fstype string, flags uintptr, data string) string {
	t.Helper()
	Need(t, Root)
	dir := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(source, dir, fstype, flags, data); err != nil {
		t.Fatalf("mount -t %s -o %q %s %s: %v", fstype, data, source, dir, err)
	}
	t.Cleanup(func() {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			t.Errorf("umount %s: %v; in use by %v", dir, err, users(dir))
			err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if err != nil {
			t.Errorf("umount %s: %v", dir, err)
		}
	})
	return dir
}

// image makes a file system in a sparse file and mounts it.
func image(t testing.TB, size int64, fstype, mkfs string, args ...string) string {
	t.Helper()
	Need(t, Root, Loop)
	tool := NeedTool(t, mkfs)
	file, err := os.Create(filepath.Join(t.TempDir(), fstype+".img"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	run(t, tool, append(args, file.Name())...)
	dev, err := attach(file)
	if err != nil {
		t.Fatal(err)
	}
	// The mount holds the device from here on; ours is the reference that kept
	// it until then.
	defer dev.Close()
	return Mount(t, dev.Name(), fstype, 0, "")
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// attach gives a file a loop device that goes away with its last user.
func attach(file *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	// A number that is free now can be taken by somebody else before we have it.
	for range 64 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("LOOP_CTL_GET_FREE: %w", err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		cfg := unix.LoopConfig{Fd: uint32(file.Fd())}
		cfg.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], file.Name())
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &cfg)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("LOOP_CONFIGURE %s: %w", dev.Name(), err)
		}
	}
	return nil, errors.New("no free loop device")
}
