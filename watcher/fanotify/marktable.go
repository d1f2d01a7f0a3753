package fanotify

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// maxHeld bounds the descriptors that are kept only to take marks away again.
const maxHeld = 4096

// mark is an inode mark. To take it away the kernel wants the directory named by a descriptor or path:
// it is opened by handle for that, and where the file system does not
// allow it, fd is held. Past maxHeld neither works: the mark then stays until Close, and the
// events that it makes are dropped.
type mark struct {
	key   notify.Object // as events name the directory
	group int
	fd    int // -1 if none is held
}

// markTable is guarded by Watcher.mu.
type markTable struct {
	covered map[uint64]bool // file systems with a filesystem mark, by coverKey
	live    map[notify.Object]mark
	// names maps what events say to what they shall say, where that differs;
	// the zero Object stands for a mark that could not be taken away.
	names  map[notify.Object]notify.Object
	reopen map[uint64]reopener
	held   int
}

// reopener says how directories of one file system are opened by handle.
type reopener struct {
	works bool
	path  string // of a mount of that file system; empty: Watcher.rootFd will do
}

func newMarkTable() markTable {
	return markTable{
		covered: make(map[uint64]bool), live: make(map[notify.Object]mark),
		names: make(map[notify.Object]notify.Object), reopen: make(map[uint64]reopener),
	}
}

func (t *markTable) has(dir notify.Object) bool {
	_, ok := t.live[dir]
	return ok
}

func (t *markTable) add(dir notify.Object, m mark) {
	t.live[dir] = m
	delete(t.names, m.key)
	if m.key != dir {
		t.names[m.key] = dir
	}
}

func (t *markTable) remove(dir notify.Object, m mark, gone bool) {
	delete(t.live, dir)
	if m.fd >= 0 {
		unix.Close(m.fd)
		t.held--
	}
	if gone {
		delete(t.names, m.key)
	} else {
		t.names[m.key] = notify.Object{}
	}
}

// hold duplicates fd if there is room; without, it returns -1.
func (t *markTable) hold(fd int) (int, error) {
	if t.held >= maxHeld {
		return -1, nil
	}
	d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("dup: %w", err)
	}
	t.held++
	return d, nil
}

func (t *markTable) closeAll() {
	for _, m := range t.live {
		if m.fd >= 0 {
			unix.Close(m.fd)
		}
	}
	t.live, t.held = nil, 0
}

// translate puts the marker's names into r and reports whether anybody asked for it.
func (t *markTable) translate(r *notify.Raw) bool {
	if len(t.names) == 0 {
		return true
	}
	for _, o := range []*notify.Object{&r.Dir, &r.NewDir, &r.Object} {
		if to, ok := t.names[*o]; ok {
			*o = to
		}
	}
	if r.Mask&notify.Rename != 0 {
		if r.Dir.IsZero() {
			r.Name = ""
		}
		if r.NewDir.IsZero() {
			r.NewName = ""
		}
	}
	// With neither side left the record is that of a mark that was given up.
	return r.Mask&notify.QOverflow != 0 || !r.Dir.IsZero() || !r.NewDir.IsZero() || !r.Object.IsZero() && r.Name == ""
}

// canReopenLocked reports whether o's file system lets us open by handle, and finds out with o
// itself, which exists, the first time.
func (w *Watcher) canReopenLocked(o notify.Object) bool {
	if r, ok := w.marks.reopen[o.FS]; ok {
		return r.works
	}
	var r reopener
	if fd := openHandle(w.rootFd, o); fd >= 0 {
		unix.Close(fd)
		r.works = true
	} else {
		for _, m := range w.table.Below() {
			if untouchable(m.FSType) {
				continue
			}
			if fd := openHandleAt(m.Path, o); fd >= 0 {
				unix.Close(fd)
				r = reopener{works: true, path: m.Path}
				break
			}
		}
	}
	w.marks.reopen[o.FS] = r
	return r.works
}

// reopenLocked returns a descriptor of o, or -1 if it is gone or cannot be had.
func (w *Watcher) reopenLocked(o notify.Object) int {
	r := w.marks.reopen[o.FS]
	switch {
	case !r.works:
		return -1
	case r.path == "":
		return openHandle(w.rootFd, o)
	default:
		return openHandleAt(r.path, o)
	}
}

// openHandleAt holds no descriptor of the mount longer than needed: it would keep the mount busy.
func openHandleAt(mountPath string, o notify.Object) int {
	at, err := unix.Open(mountPath, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	defer unix.Close(at)
	return openHandle(at, o)
}

func openHandle(mountFd int, o notify.Object) int {
	fd, err := sys.OpenByHandle(mountFd, o, unix.O_PATH)
	if err != nil {
		return -1
	}
	// A handle of another file system may mean something here too.
	if same, _, err := sys.ObjectOf(fd); err != nil || same != o {
		unix.Close(fd)
		return -1
	}
	return fd
}
