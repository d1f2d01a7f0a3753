package fanotify

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher/internal/mounts"
)

// markFilesystems sets a filesystem mark on everything at and below the root, and
// turns to inode marks where one is refused.
func (w *Watcher) markFilesystems(force bool) error {
	if force {
		w.inode, w.forced = true, true
		return w.tryInode()
	}
	if err := w.markFilesystem(w.rootFd, "."); err != nil {
		w.refuse(fmt.Errorf("no filesystem mark on the root: %w", err))
		if err := w.tryInode(); err != nil {
			return err
		}
	}
	for _, m := range w.table.Below() {
		err := w.markMount(m)
		if err == nil {
			continue
		}
		w.refuse(fmt.Errorf("no filesystem mark on %s (%s): %w", m.Path, m.FSType, err))
		w.log.Debug("filesystem mark refused", "path", m.Path, "type", m.FSType, "error", err)
	}
	return nil
}

// refuse turns to inode marks; the first reason is kept.
func (w *Watcher) refuse(err error) {
	w.inode = true
	if w.refused == nil {
		w.refused = err
	}
}

// tryInode finds out whether the root takes an inode mark at all.
func (w *Watcher) tryInode() error {
	fd := w.groups[0].fd
	mask := w.mask | unix.FAN_EVENT_ON_CHILD
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_ONLYDIR, mask, w.rootFd, "."); err != nil {
		return unsupported("inode mark", err)
	}
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_REMOVE|unix.FAN_MARK_ONLYDIR, mask, w.rootFd, "."); err != nil {
		return unsupported("remove inode mark", err)
	}
	return nil
}

// markFilesystem sets the filesystem mark and remembers what it covers.
func (w *Watcher) markFilesystem(dirfd int, path string) error {
	fd, err := unix.Openat(dirfd, path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	o, _, err := sys.ObjectOf(fd)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if root, ok := btrfsRoot(o); ok {
		// Before the first event can be parsed.
		w.parser.btrfsTop[o.FS] = root
	}
	const flags = unix.FAN_MARK_ADD | unix.FAN_MARK_FILESYSTEM | unix.FAN_MARK_DONT_FOLLOW
	if err := unix.FanotifyMark(w.groups[0].fd, flags, w.mask, dirfd, path); err != nil {
		delete(w.parser.btrfsTop, o.FS)
		return unsupported("filesystem mark", err)
	}
	w.marks.covered[coverKey(o)] = true
	return nil
}

// Unheard has events of file contents and opens that come through the mount of the directory fd passed over, whoever
// makes them. It wraps notify.ErrNotSupported where there are inode marks: their groups come and go.
func (w *Watcher) Unheard(fd int) error {
	if w.inode {
		return fmt.Errorf("pass over a mount: %w", notify.ErrNotSupported)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return fmt.Errorf("pass over a mount: %w", notify.ErrClosed)
	}
	const flags = unix.FAN_MARK_ADD | unix.FAN_MARK_MOUNT | unix.FAN_MARK_IGNORE_SURV
	// Of what is not asked for the kernel need not think at each read.
	mask := w.mask & (unix.FAN_OPEN | unix.FAN_ACCESS | unix.FAN_MODIFY | unix.FAN_CLOSE)
	if mask == 0 {
		return nil
	}
	if err := unix.FanotifyMark(w.groups[0].fd, flags, mask, fd, "."); err != nil {
		return unsupported("pass over a mount", err)
	}
	return nil
}

// markMount marks what is mounted at m, if that makes sense.
func (w *Watcher) markMount(m mounts.Mount) error {
	switch {
	case silent(m.FSType):
		return nil
	case untouchable(m.FSType):
		return fmt.Errorf("FUSE has no filesystem marks: %w", notify.ErrNotSupported)
	}
	return w.markFilesystem(unix.AT_FDCWD, m.Path)
}

// untouchable says of a file system that even statfs can wait for a server, which may be
// dead, or may be this process and waiting for us.
func untouchable(fstype string) bool {
	return fstype == "fuse" || fstype == "fuseblk" || strings.HasPrefix(fstype, "fuse.")
}

// silent says of a file system that no file change in it is worth a mark.
func silent(fstype string) bool {
	switch fstype {
	case "proc", "sysfs", "cgroup", "cgroup2", "devpts", "debugfs", "tracefs", "securityfs", "bpf", "mqueue",
		"pstore", "configfs", "fusectl", "binfmt_misc", "autofs", "nsfs", "efivarfs", "rpc_pipefs", "selinuxfs":
		return true
	}
	// Our own guest mount inside the host tree would hear itself.
	return strings.HasPrefix(fstype, "fuse.heraldfs")
}

// onMount marks what was just mounted.
func (w *Watcher) onMount(m mounts.Mount) {
	if w.forced {
		return
	}
	if err := w.markMount(m); err != nil && !w.inode {
		w.log.Warn("changes in a new mount will not be heard", "path", m.Path, "type", m.FSType, "error", err)
	}
}

// Mark is notify.Marker's. A directory that a filesystem mark covers is not marked again.
func (w *Watcher) Mark(dir notify.Object, fd int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return fmt.Errorf("mark: %w", notify.ErrClosed)
	}
	if w.marks.covered[coverKey(dir)] || w.marks.has(dir) {
		return nil
	}
	m := mark{key: dir, fd: -1}
	if dir.Type == notify.TypeInode {
		// The caller works without handles, but the event will have one.
		o, _, err := sys.ObjectOf(fd)
		if err != nil {
			return fmt.Errorf("mark: %w", err)
		}
		m.key = o
	}
	g, err := w.addMarkLocked(dir, fd)
	if err != nil {
		return err
	}
	m.group = g
	if !w.canReopenLocked(m.key) {
		if m.fd, err = w.marks.hold(fd); err != nil {
			w.removeMarkLocked(g, dir, fd)
			return fmt.Errorf("mark: %w", err)
		}
	}
	w.marks.add(dir, m)
	return nil
}

func (w *Watcher) addMarkLocked(dir notify.Object, fd int) (groupFd int, err error) {
	const flags = unix.FAN_MARK_ADD | unix.FAN_MARK_ONLYDIR
	mask := w.inodeMask(dir)
	g := w.groups[0].fd
	for _, more := range w.groups[1:] {
		if more.fs == dir.FS {
			g = more.fd
		}
	}
	// A name below the descriptor, because fanotify_mark refuses an O_PATH descriptor alone.
	err = unix.FanotifyMark(g, flags, mask, fd, ".")
	if errors.Is(err, unix.EXDEV) && g == w.groups[0].fd {
		if g, err = w.addGroup(dir.FS); err != nil {
			return -1, err
		}
		w.loop.Wake()
		err = unix.FanotifyMark(g, flags, mask, fd, ".")
	}
	if err != nil {
		return -1, unsupported("inode mark", err)
	}
	return g, nil
}

func (w *Watcher) removeMarkLocked(groupFd int, dir notify.Object, fd int) {
	// ENOENT: the directory was deleted, and its mark with it.
	err := unix.FanotifyMark(groupFd, unix.FAN_MARK_REMOVE|unix.FAN_MARK_ONLYDIR, w.inodeMask(dir), fd, ".")
	if err != nil && !errors.Is(err, unix.ENOENT) {
		w.log.Debug("remove inode mark", "error", err)
	}
}

// Unmark is notify.Marker's.
func (w *Watcher) Unmark(dir notify.Object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m, ok := w.marks.live[dir]
	if !ok || w.closed {
		return
	}
	fd := m.fd
	if fd < 0 {
		// The mark pins the inode, so this does not go to the disk.
		fd = w.reopenLocked(m.key)
	}
	removed := fd >= 0 || w.canReopenLocked(m.key)
	if fd >= 0 {
		w.removeMarkLocked(m.group, dir, fd)
	}
	w.marks.remove(dir, m, removed)
	if fd >= 0 && m.fd < 0 {
		unix.Close(fd)
	}
}
