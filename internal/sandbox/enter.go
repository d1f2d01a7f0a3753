package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
)

// ErrEnter says that Enter failed: the kernel, or the root that we have, does not allow the mode.
var ErrEnter = errors.New("enter the sandbox")

// Enter takes this process out of the host's file system, and in namespace mode off its
// network, and returns the path that Dir has from now on. Files, sockets and programs outside of Dir can be used only by
// descriptors that are open already. After an error (ErrEnter) the process is of no use any more.
func Enter(o Options) (dir string, err error) {
	if dir, err = enter(o); err != nil {
		return "", fmt.Errorf("%w: %w", ErrEnter, err)
	}
	return dir, nil
}

func enter(o Options) (dir string, err error) {
	switch o.Mode {
	case None, Landlock:
		return o.Dir, nil
	}
	// The log's clock reads /etc/localtime when it is first looked at.
	_ = time.Now().Local().String()
	if o.Mode == Chroot {
		if err := enterChroot(o.Dir); err != nil {
			return "", fmt.Errorf("chroot: %w", err)
		}
		return "/", nil
	}
	if os.Getpid() != 1 {
		// Join has looked closer.
		return "", errors.New("namespace: not the first process of its namespace")
	}
	if err := enterNetwork(); err != nil {
		return "", fmt.Errorf("network namespace: %w", err)
	}
	// What the host mounts below Dir later comes to us; what we do does not go back.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return "", fmt.Errorf("mount namespace: make its mounts slaves: %w", err)
	}
	if o.Dir == "/" {
		// All is shared: there is nothing to keep out.
		return o.Dir, nil
	}
	if err := enterRoot(o.Dir); err != nil {
		return "", fmt.Errorf("mount namespace: %w", err)
	}
	return o.Dir, nil
}

// enterChroot makes dir the root. From there /proc has no name, so the working directory stands in for it.
func enterChroot(dir string) error {
	if err := unix.Chdir("/proc/self/fd"); err != nil {
		return fmt.Errorf("chdir /proc/self/fd: %w", err)
	}
	if err := unix.Chroot(dir); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	sys.ProcIsWorkingDirectory()
	return nil
}

// enterNetwork moves all threads to an empty network namespace. Sockets that are open stay where they are.
func enterNetwork() error {
	type made struct {
		fd  int
		err error
	}
	result := make(chan made)
	go func() {
		// Not unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- made{-1, err}
			return
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		result <- made{fd, err}
	}()
	ns := <-result
	if ns.err != nil {
		return ns.err
	}
	defer unix.Close(ns.fd)
	return onAllThreads("setns", unix.SYS_SETNS, uintptr(ns.fd), unix.CLONE_NEWNET, 0)
}

// self is what stays of /proc.
var self = [...]string{"/proc/self/fd", "/proc/self/mountinfo"}

// enterRoot builds the new root on top of /proc, where nobody else sees it, and pivots into it.
func enterRoot(dir string) error {
	const stage = "/proc"
	type tree struct {
		path string
		fd   int
	}
	var trees []tree
	defer func() {
		for _, t := range trees {
			unix.Close(t.fd)
		}
	}()
	for i, path := range append([]string{dir}, self[:]...) {
		flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
		if i == 0 {
			flags |= unix.AT_RECURSIVE
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
		if err != nil {
			return fmt.Errorf("open_tree %s: %w", path, err)
		}
		trees = append(trees, tree{path, fd})
	}
	if err := unix.Mount("heraldfs", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=64k"); err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	for _, t := range trees {
		at := filepath.Join(stage, t.path)
		if err := mountPoint(at, t.fd); err != nil {
			return err
		}
		if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("move_mount to %s: %w", t.path, err)
		}
	}
	const sealed = unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("", stage, "", sealed, ""); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	if err := unix.Chdir(stage); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	// The old root lies on the new one now.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let the old root go: %w", err)
	}
	return unix.Chdir("/")
}

// mountPoint makes a directory or a file, as fd is one.
func mountPoint(path string, fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	parent := path
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		parent = filepath.Dir(path)
	}
	if err := os.MkdirAll(parent, 0o755); err != nil || parent == path {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return f.Close()
}

// Seal gives up what is not needed any more: capabilities, the right to gain any, and files outside of dir, which is
// what Enter returned.
func Seal(o Options, dir string) error {
	if o.Mode == None {
		return nil
	}
	if err := onAllThreads("no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return err
	}
	// In a chroot nothing of /proc has a name.
	var readable []string
	if o.Mode != Chroot {
		readable = append(readable, "/proc/self/mountinfo")
	}
	switch err := restrict(dir, readable); {
	case err != nil && o.Mode == Landlock:
		return err
	case err != nil:
		o.Logger.Warn("no Landlock", "err", err)
	}
	return dropCaps(o.capabilities())
}
