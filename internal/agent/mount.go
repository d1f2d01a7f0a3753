package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mountID names a mount for its life, and the file system that is mounted.
type mountID struct {
	path         string
	id           int
	major, minor int
}

// open returns an O_PATH descriptor of the root on a clone of the mount, or, without the privilege to
// clone, on the mount itself.
func (m mountID) open() (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, m.path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_NO_AUTOMOUNT)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSYS):
		fd, err = unix.Open(m.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("open %s: %w", m.path, err)
		}
	case err != nil:
		return -1, fmt.Errorf("clone %s: %w", m.path, err)
	default:
		if err := private(fd); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("clone of %s: %w", m.path, err)
		}
	}
	var st unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st)
	if err == nil && (int(st.Dev_major) != m.major || int(st.Dev_minor) != m.minor) {
		err = errMount
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("%s: %w", m.path, err)
	}
	return fd, nil
}

// private makes a clone ours alone, and writable.
func private(fd int) error {
	attr := unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC,
		Attr_clr:    unix.MOUNT_ATTR_RDONLY,
		Propagation: unix.MS_PRIVATE,
	}
	// ENOSYS: before Linux 5.12 the clone is as the mount is.
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

// mountWatch tells when mounts of our namespace come and go.
type mountWatch struct {
	path string
	info *os.File
	stop int // eventfd
	ends sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change
}

func newMountWatch(path string) (*mountWatch, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	const file = "/proc/self/mountinfo"
	// Not by os.Open: the runtime's poller would share the descriptor, and does not ask for POLLPRI.
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	w := &mountWatch{path: path, info: os.NewFile(uintptr(fd), file), stop: stop, changed: make(chan struct{})}
	w.ends.Go(w.run)
	return w, nil
}

func (w *mountWatch) run() {
	for {
		fds := []unix.PollFd{
			{Fd: int32(w.info.Fd()), Events: unix.POLLPRI},
			{Fd: int32(w.stop), Events: unix.POLLIN},
		}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents == 0 {
			continue
		}
		w.mu.Lock()
		close(w.changed)
		w.changed = make(chan struct{})
		w.mu.Unlock()
	}
}

func (w *mountWatch) close() {
	one := [8]byte{1}
	_, _ = unix.Write(w.stop, one[:]) // cannot fail: it is written once
	w.ends.Wait()
	w.info.Close()
	unix.Close(w.stop)
}

// all returns the mounts of our namespace, and what tells that they are others.
func (w *mountWatch) all() ([]*mountinfo.Info, <-chan struct{}, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := w.info.Seek(0, io.SeekStart); err != nil {
		return nil, nil, err
	}
	list, err := mountinfo.GetMountsFromReader(w.info, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("mounts: %w", err)
	}
	return list, w.changed, nil
}

// now returns what is mounted at the path, the topmost if there are several.
func (w *mountWatch) now() (m mountID, ok bool, changed <-chan struct{}, err error) {
	list, changed, err := w.all()
	for _, e := range list {
		if e.Mountpoint == w.path {
			m, ok = mountID{w.path, e.ID, e.Major, e.Minor}, true
		}
	}
	return m, ok, changed, err
}

// wait returns the mount when it is there.
func (w *mountWatch) wait(ctx context.Context) (mountID, error) {
	for {
		m, ok, changed, err := w.now()
		if err != nil || ok {
			return m, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return m, ctx.Err()
		}
	}
}

// gone returns true when m is not there any more, or false when ctx ends.
func (w *mountWatch) gone(ctx context.Context, m mountID) bool {
	for {
		now, ok, changed, err := w.now()
		if err != nil || !ok || now != m {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}
