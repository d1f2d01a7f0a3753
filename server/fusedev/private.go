package fusedev

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/heraldfs/heraldfs/notify"
	"golang.org/x/sys/unix"
)

// PrivateRoot returns an O_PATH descriptor of the root in a mount of its own: nosuid,
// nodev, noexec, writable even if the visible mount is not, in nobody's
// namespace and with no mounts below it. It can be asked for before Serve.
//
// The descriptor is the caller's. It and those opened below it do not keep
// Unmount from succeeding, but the connection lives until they are closed: close
// them when Unmounted says so.
//
// Without the privilege to mount, notify.ErrNotSupported.
func (c *Conn) PrivateRoot() (int, error) {
	if !c.direct {
		return -1, fmt.Errorf("private root of %s: %w without mount privileges", c.point, notify.ErrNotSupported)
	}
	if err := c.startWatch(); err != nil {
		return -1, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, c.point, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_NO_AUTOMOUNT)
	if err != nil {
		return -1, privateError(c.point, "open_tree", err)
	}
	id, err := identify(fd, "", unix.AT_EMPTY_PATH)
	if err == nil && (id.major != c.id.major || id.minor != c.id.minor) {
		err = fmt.Errorf("private root of %s: %w: it is no longer mounted there", c.point, notify.ErrClosed)
	}
	if err == nil {
		attr := unix.MountAttr{
			Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC,
			Attr_clr: unix.MOUNT_ATTR_RDONLY,
			// As a peer of the visible mount it would get what is mounted below that.
			Propagation: unix.MS_PRIVATE,
		}
		if serr := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); serr != nil {
			err = privateError(c.point, "mount_setattr", serr)
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func privateError(point, call string, err error) error {
	if err == unix.ENOSYS || err == unix.EPERM {
		return fmt.Errorf("private root of %s: %s: %w: %w", point, call, notify.ErrNotSupported, err)
	}
	return fmt.Errorf("private root of %s: %s: %w", point, call, err)
}

// mountWatch waits for our mounts to leave the namespace. It has a thread of its own, since the
// runtime's poller does not ask for POLLPRI.
type mountWatch struct {
	info    *os.File
	stop    int // eventfd
	running sync.WaitGroup
}

func (c *Conn) startWatch() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watching != nil {
		return nil
	}
	select {
	case <-c.dead:
		return fmt.Errorf("watch %s: %w", c.point, notify.ErrClosed)
	default:
	}
	// Not by os.Open: the runtime's poller would share the descriptor, and whoever polls
	// mountinfo first takes the change from the others.
	fd, err := unix.Open(mountinfoPath, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return wrapPath(mountinfoPath, err)
	}
	info := os.NewFile(uintptr(fd), mountinfoPath)
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		info.Close()
		return fmt.Errorf("eventfd: %w", err)
	}
	w := &mountWatch{info: info, stop: stop}
	c.watching = w
	w.running.Go(func() { c.watchMounts(w) })
	return nil
}

// watchMounts returns when no mount of our superblock is left in our namespace,
// or stop is written to.
func (c *Conn) watchMounts(w *mountWatch) {
	for {
		if _, err := w.info.Seek(0, io.SeekStart); err != nil {
			c.log.Error("cannot watch the mount", "err", err)
			return
		}
		entries, err := parseMounts(w.info)
		if err != nil {
			c.log.Error("cannot watch the mount", "err", err)
			return
		}
		if !c.visible(entries) {
			c.setUnmounted()
			return
		}
		fds := []unix.PollFd{
			{Fd: int32(w.info.Fd()), Events: unix.POLLPRI},
			{Fd: int32(w.stop), Events: unix.POLLIN},
		}
		for {
			_, err = unix.Poll(fds, -1)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if err != nil {
			c.log.Error("cannot watch the mount", "err", err)
			return
		}
		if fds[1].Revents != 0 {
			return
		}
	}
}

func (c *Conn) stopWatch() {
	c.mu.Lock()
	w := c.watching
	c.mu.Unlock()
	if w == nil {
		return
	}
	one := [8]byte{1}
	if _, err := unix.Write(w.stop, one[:]); err != nil {
		c.log.Error("cannot stop the watch of the mount", "err", err)
		return
	}
	w.running.Wait()
	w.info.Close()
	unix.Close(w.stop)
}
