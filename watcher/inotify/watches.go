package inotify

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// watch is one marked directory.
type watch struct {
	dir notify.Object
	// parent is the directory that dir is in, zero if dir is the root of a mount or
	// its parent is not known.
	parent notify.Object
	// file says that dir is a file, marked by MarkFile.
	file bool
}

// watchTable is guarded by Watcher.mu. The kernel gives out watch descriptors in a circle (idr_alloc_cyclic),
// so a late record of a removed watch finds nothing here rather than another directory.
type watchTable struct {
	byWd  map[int32]*watch
	byDir map[notify.Object]int32
	moves moves
	// moved are marked directories that were moved of late, see settled.
	moved map[notify.Object]struct{}
}

func newWatchTable() watchTable {
	return watchTable{byWd: make(map[int32]*watch), byDir: make(map[notify.Object]int32), moved: make(map[notify.Object]struct{})}
}

// Mark is notify.Marker's. The error wraps notify.ErrNotSupported if the user's limit of
// watches (fs.inotify.max_user_watches) is reached.
func (w *Watcher) Mark(dir notify.Object, fd int) error {
	return w.add(fd, w.mask, watch{dir: dir})
}

// fileMask is what a mark on a file is for.
const fileMask = unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_CLOSE_WRITE

// MarkFile is notify.FileMarker's.
func (w *Watcher) MarkFile(file notify.Object, fd int) error {
	return w.add(fd, w.mask&fileMask, watch{dir: file, file: true})
}

func (w *Watcher) add(fd int, mask uint32, e watch) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return fmt.Errorf("mark: %w", notify.ErrClosed)
	}
	if _, ok := w.watches.byDir[e.dir]; ok {
		return nil
	}
	wd, err := unix.InotifyAddWatch(w.fd, sys.ProcPath(fd), mask)
	switch {
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("inotify_add_watch: fs.inotify.max_user_watches reached: %w: %w", err, notify.ErrNotSupported)
	case err != nil:
		return fmt.Errorf("inotify_add_watch: %w", err)
	}
	if old := w.watches.byWd[int32(wd)]; old != nil {
		delete(w.watches.byDir, old.dir)
	}
	if !e.file {
		// Now and not before: what moves it after this is told by a MOVE_SELF.
		e.parent = parentOf(fd)
	}
	w.watches.byWd[int32(wd)] = &e
	w.watches.byDir[e.dir] = int32(wd)
	return nil
}

// Unmark is notify.Marker's. Queued events of dir are dropped.
func (w *Watcher) Unmark(dir notify.Object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	wd, ok := w.watches.byDir[dir]
	if !ok || w.closed {
		return
	}
	w.watches.remove(wd)
	// EINVAL: the directory was deleted, and the watch with it.
	if _, err := unix.InotifyRmWatch(w.fd, uint32(wd)); err != nil && !errors.Is(err, unix.EINVAL) {
		w.log.Debug("inotify_rm_watch", "error", err)
	}
}

func (t *watchTable) remove(wd int32) {
	if e := t.byWd[wd]; e != nil {
		delete(t.byWd, wd)
		if t.byDir[e.dir] == wd {
			delete(t.byDir, e.dir)
		}
	}
}

// raw makes of a record what the coalescer wants, or reports false if nobody shall hear of it.
func (t *watchTable) raw(ev event) (notify.Raw, bool) {
	if ev.mask&notify.QOverflow != 0 {
		t.moves = moves{}
		t.settled()
		return notify.Raw{Mask: notify.QOverflow}, true
	}
	e := t.byWd[ev.wd]
	if e == nil {
		return notify.Raw{}, false
	}
	if ev.mask&notify.Ignored != 0 {
		t.remove(ev.wd)
		return notify.Raw{}, false
	}
	if ev.mask&notify.Unmount != 0 {
		return notify.Raw{}, false
	}
	if ev.mask&notify.MoveSelf != 0 {
		return t.moveSelf(e)
	}
	if e.file {
		return notify.Raw{Mask: ev.mask, Object: e.dir}, true
	}
	if len(ev.name) == 0 {
		return t.self(e, ev)
	}
	if ev.mask&notify.IsDir != 0 {
		switch {
		case ev.mask&notify.MovedFrom != 0:
			t.moves.from(ev.cookie, e.dir)
		case ev.mask&notify.MovedTo != 0:
			t.moves.to(ev.cookie, e.dir)
		}
	}
	return notify.Raw{Mask: ev.mask, Dir: e.dir, Name: string(ev.name), Cookie: ev.cookie, Moved: t.lineage(e)}, true
}

// self is a record about the marked directory itself.
func (t *watchTable) self(e *watch, ev event) (notify.Raw, bool) {
	if _, marked := t.byDir[e.parent]; marked {
		return notify.Raw{}, false
	}
	return notify.Raw{Mask: ev.mask | notify.IsDir, Dir: e.dir, Name: ".", Object: e.dir, Moved: t.lineage(e)}, true
}

// parentOf names the directory whose watch hears of fd by name.
func parentOf(fd int) notify.Object {
	var stx unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &stx)
	if err != nil || stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return notify.Object{}
	}
	up, err := unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return notify.Object{}
	}
	defer unix.Close(up)
	o, _, err := sys.ObjectOf(up)
	if err != nil {
		return notify.Object{}
	}
	return o
}
