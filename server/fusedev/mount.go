package fusedev

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoDevice says that /dev/fuse cannot be used.
	ErrNoDevice = errors.New("FUSE is not available")
	// ErrNoHelper says that fusermount3 is needed and missing.
	ErrNoHelper = errors.New("fusermount3 not found (as root: apt install fuse3)")
	// ErrAllowOther says that /etc/fuse.conf forbids allow_other.
	ErrAllowOther = errors.New("allow_other needs a line user_allow_other in /etc/fuse.conf, or root")
	// ErrStale says that a dead FUSE mount that is not ours is in the way.
	ErrStale = errors.New("dead FUSE mount in the way")
	// ErrBusy says that a mount is in use.
	ErrBusy = errors.New("mount is in use")
)

const devicePath = "/dev/fuse"

// maxStale is how many dead mounts on top of each other are cleaned up.
const maxStale = 16

// prepare returns the resolved mount point, which is a directory that answers.
func prepare(mountpoint string, opts *Options) (string, error) {
	point, err := resolve(mountpoint)
	if err != nil {
		return "", fmt.Errorf("mount point: %w", err)
	}
	var st unix.Stat_t
	for range maxStale {
		err = answers(point, &st)
		if !Dead(err) {
			break
		}
		if err := cleanStale(point, opts); err != nil {
			return "", err
		}
	}
	switch {
	case err == unix.ENOENT:
		return "", fmt.Errorf("mount point %s does not exist (create it with mkdir): %w", point, err)
	case err != nil:
		return "", fmt.Errorf("mount point %s: %w", point, err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return "", fmt.Errorf("mount point %s: %w", point, unix.ENOTDIR)
	}
	if !isEmpty(point) {
		opts.Logger.Info("mount point is not empty, the mount hides what is there", "mountpoint", point)
	}
	return point, nil
}

// answers is stat(2) that is not content with what the kernel has cached: with long cache times
// the root of a dead mount still has attributes, but no statfs(2).
func answers(point string, st *unix.Stat_t) error {
	if err := unix.Stat(point, st); err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(point, &fs); Dead(err) {
		return err
	}
	return nil
}

// resolve makes path absolute and free of symlinks without touching the directory itself,
// which may be a dead mount.
func resolve(path string) (string, error) {
	for range 40 {
		abs, err := filepath.Abs(path)
		if err != nil {
			return "", err
		}
		if abs == "/" {
			return abs, nil
		}
		dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
		if err != nil {
			return "", err
		}
		path = filepath.Join(dir, filepath.Base(abs))
		target, err := os.Readlink(path)
		if err != nil {
			return path, nil
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		path = target
	}
	return "", &os.PathError{Op: "resolve", Path: path, Err: unix.ELOOP}
}

func isEmpty(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return true // mount(2) decides whether that matters
	}
	defer f.Close()
	_, err = f.Readdirnames(1)
	return errors.Is(err, io.EOF)
}

// cleanStale detaches the mount on point that a killed daemon of ours left.
func cleanStale(point string, opts *Options) error {
	entries, err := readMounts()
	if err != nil {
		return err
	}
	top, ok := topMount(entries, point)
	if !ok || top.fsType != "fuse."+opts.Subtype {
		return fmt.Errorf("mount point %s: %w (type %q; remove it with: umount -l %s)", point, ErrStale, top.fsType, point)
	}
	opts.Logger.Warn("removing the mount of a daemon that has died", "mountpoint", point, "type", top.fsType)
	if err := unmountPath(point, true); err != nil {
		return fmt.Errorf("mount point %s: %w: %w", point, ErrStale, err)
	}
	return nil
}

// mountAny mounts by ourselves if we may, and through fusermount otherwise. direct
// tells which.
func mountAny(point string, opts *Options) (fd int, direct bool, err error) {
	if os.Geteuid() == 0 {
		fd, err = mountDirect(point, opts)
		if err == nil {
			return fd, true, nil
		}
		// Root without CAP_SYS_ADMIN, as in many containers.
		if !errors.Is(err, unix.EPERM) {
			return -1, false, err
		}
		opts.Logger.Debug("mount(2) is not permitted, trying fusermount", "err", err)
	}
	helped, herr := mountHelper(point, opts)
	if herr != nil {
		return -1, false, errors.Join(herr, err)
	}
	return helped, false, nil
}

func openDevice() (int, error) {
	fd, err := unix.Open(devicePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
		return fd, nil
	case unix.ENOENT:
		return -1, fmt.Errorf("%w: no %s (load the module with modprobe fuse; in a container start it with --device %s): %w",
			ErrNoDevice, devicePath, devicePath, err)
	case unix.ENODEV, unix.ENXIO:
		return -1, fmt.Errorf("%w: this kernel has no FUSE: %w", ErrNoDevice, err)
	case unix.EACCES, unix.EPERM:
		return -1, fmt.Errorf("%w: no permission to open %s: %w", ErrNoDevice, devicePath, err)
	}
	return -1, fmt.Errorf("open %s: %w", devicePath, err)
}

func mountDirect(point string, opts *Options) (int, error) {
	fd, err := openDevice()
	if err != nil {
		return -1, err
	}
	words := append([]string{
		fmt.Sprintf("fd=%d", fd),
		"rootmode=40000",
		fmt.Sprintf("user_id=%d", os.Geteuid()),
		fmt.Sprintf("group_id=%d", os.Getegid()),
	}, opts.data()...)
	data := strings.Join(words, ",")
	if err := unix.Mount(opts.FSName, point, "fuse."+opts.Subtype, opts.mountFlags(), data); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount %s (%s): %w%s", point, data, err, mountHint(err))
	}
	if opts.ReadOnly {
		if err := setReadOnly(point, opts); err != nil {
			err = fmt.Errorf("make %s read-only: %w", point, err)
			err = errors.Join(err, unmountPath(point, true))
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

func mountHint(err error) string {
	switch err {
	case unix.EPERM:
		return " (mounting needs root, or fusermount3)"
	case unix.EINVAL:
		return " (an option that the kernel does not know? see dmesg)"
	case unix.ENODEV:
		return " (this kernel has no FUSE)"
	}
	return ""
}

// setReadOnly closes the visible mount only: the superblock stays writable for
// private roots. Nobody can have written before, since nothing was served.
func setReadOnly(point string, opts *Options) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	err := unix.MountSetattr(unix.AT_FDCWD, point, 0, &attr)
	if err != unix.ENOSYS {
		return err
	}
	return unix.Mount("", point, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|opts.mountFlags(), "")
}

// unmountPath unmounts what is on point; lazily takes it away even if it is in use.
func unmountPath(point string, lazily bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazily {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(point, flags)
	if err == unix.EPERM {
		return unmountHelper(point, lazily)
	}
	if err == unix.EBUSY {
		return fmt.Errorf("unmount %s: %w: %w", point, ErrBusy, err)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", point, err)
	}
	return nil
}
