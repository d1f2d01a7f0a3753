package fusedev

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Dead reports whether err is what a FUSE file system says that has lost its daemon: ENOTCONN, or, to whoever was waiting
// when that ended, ECONNABORTED or ECANCELED.
func Dead(err error) bool {
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.ECANCELED)
}

// Unmount takes the file system off its mount point. A mount in use gives ErrBusy
// and stays. It does not wait for Serve. Unmounting what is already gone is no error.
func (c *Conn) Unmount() error { return c.unmount(false) }

// Close unmounts, detaches a mount that is in use, aborts the connection if anything
// still holds the file system, and waits for Serve. Whoever still has a file open gets
// ENOTCONN. Idempotent.
//
// To abort needs root, or a mounted /sys/fs/fuse/connections. Without, a file system in use is
// detached, ErrBusy is returned, and Serve ends with its last user.
func (c *Conn) Close() error {
	err := c.shutdown()
	c.mu.Lock()
	first := !c.closed
	c.closed = true
	serving := c.serving
	c.mu.Unlock()
	if serving {
		if err == nil {
			<-c.ended
		}
		return err
	}
	if first {
		c.end(nil)
		c.stopWatch()
		c.running.Wait()
		c.closeFD()
		c.dismissKeeper()
		close(c.ended)
	}
	return err
}

// Mounted reports whether the visible mount is there.
func (c *Conn) Mounted() bool {
	select {
	case <-c.dead:
		// Unless reading failed there is nothing that could be mounted.
		if c.err == nil {
			return false
		}
	default:
	}
	entries, err := readMounts()
	if err != nil {
		return false
	}
	_, ok := c.find(entries)
	return ok
}

// Unmounted is closed when the visible mount is gone, or the connection has ended.
// Without a private root the kernel tells; with one /proc/self/mountinfo is watched.
// Who holds descriptors below a private root closes them then.
func (c *Conn) Unmounted() <-chan struct{} { return c.unmounted }

// detachDead takes away what a read error, or somebody's abort of the connection, leaves behind:
// without its server it is of no use.
func (c *Conn) detachDead() error {
	if c.err != nil {
		if !c.Mounted() {
			return nil
		}
		return c.unmount(true)
	}
	// As a rule somebody has unmounted, and all our numbers but one may be another mount's by now.
	entries, err := readMounts()
	if err != nil {
		return err
	}
	mine, ok := c.find(entries)
	if !ok || c.id.unique == 0 {
		return nil
	}
	if now, err := identify(unix.AT_FDCWD, mine.point, unix.AT_SYMLINK_NOFOLLOW); err != nil || now.unique != c.id.unique {
		return nil
	}
	c.log.Warn("the connection was aborted, removing its mount", "mountpoint", mine.point)
	return unmountPath(mine.point, true)
}

// find looks our mount up. A number of a mount is soon used again, hence the device.
func (c *Conn) find(entries []mountEntry) (mountEntry, bool) {
	e, ok := mountByID(entries, c.id.mount)
	return e, ok && e.major == c.id.major && e.minor == c.id.minor
}

// visible reports whether any mount of our superblock is in our namespace.
func (c *Conn) visible(entries []mountEntry) bool {
	for _, e := range entries {
		if e.major == c.id.major && e.minor == c.id.minor {
			return true
		}
	}
	return false
}

func (c *Conn) unmount(lazily bool) error {
	select {
	case <-c.dead:
		if c.err == nil {
			return nil
		}
	default:
	}
	entries, err := readMounts()
	if err != nil {
		return err
	}
	// It may have been moved since.
	mine, ok := c.find(entries)
	if !ok {
		c.setUnmounted()
		return nil
	}
	if top, _ := topMount(entries, mine.point); top.id != mine.id {
		return fmt.Errorf("unmount %s: %w: another file system is mounted over it", mine.point, ErrBusy)
	}
	if err := unmountPath(mine.point, lazily); err != nil {
		return err
	}
	c.setUnmounted()
	return nil
}

// shutdown brings the connection to its end by all means.
func (c *Conn) shutdown() error {
	err := c.unmount(false)
	if errors.Is(err, ErrBusy) {
		c.log.Warn("mount is in use, detaching it", "mountpoint", c.point)
		err = c.unmount(true)
	}
	if aerr := c.abort(); aerr != nil {
		return errors.Join(err, aerr)
	}
	return err
}

// alive reports whether the kernel still knows the connection.
func (c *Conn) alive() bool {
	c.fdMu.RLock()
	defer c.fdMu.RUnlock()
	if c.fd < 0 {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		return err == nil && fds[0].Revents&unix.POLLERR == 0
	}
}

// abort ends the connection if something still holds the file system: an open
// file, a bind mount, another namespace, a private root.
func (c *Conn) abort() error {
	if !c.alive() {
		return nil
	}
	name := strconv.FormatUint(uint64(c.id.minor), 10)
	fd, err := openControl(name + "/abort")
	if errors.Is(err, unix.ENOENT) && !c.alive() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w, and its connection cannot be aborted: %w", ErrBusy, err)
	}
	defer unix.Close(fd)
	// The number belongs to us as long as we live, so the file that was opened
	// before this is ours.
	if !c.alive() {
		return nil
	}
	if _, err := unix.Write(fd, []byte("1")); err != nil {
		return fmt.Errorf("abort connection %s: %w", name, err)
	}
	return nil
}

// Abort ends the FUSE connection whose file system has the device number 0:minor. Every request
// that waits fails, and whoever has a file open gets ENOTCONN. It needs root, or to be
// who mounted it and a mounted /sys/fs/fuse/connections.
func Abort(minor uint32) error {
	fd, err := openControl(strconv.FormatUint(uint64(minor), 10) + "/abort")
	if err != nil {
		return fmt.Errorf("abort FUSE connection %d: %w", minor, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("1")); err != nil {
		return fmt.Errorf("abort FUSE connection %d: %w", minor, err)
	}
	return nil
}

// openControl opens a file of fusectl, which need not be mounted anywhere.
func openControl(name string) (int, error) {
	const dir = "/sys/fs/fuse/connections/"
	fd, err := unix.Open(dir+name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != unix.ENOENT {
		return fd, wrapPath(dir+name, err)
	}
	ctx, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen fusectl: %w", err)
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("fsconfig fusectl: %w", err)
	}
	root, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("fsmount fusectl: %w", err)
	}
	defer unix.Close(root)
	fd, err = unix.Openat(root, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	return fd, wrapPath("fusectl:"+name, err)
}

func wrapPath(path string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: "open", Path: path, Err: err}
}
