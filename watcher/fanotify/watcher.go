package fanotify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher/internal/loop"
	"github.com/heraldfs/heraldfs/watcher/internal/mounts"
)

// bufLen is the size of the read buffer: about 2,500 records.
const bufLen = 256 << 10

// Options for Open. Root is required.
type Options struct {
	// Root is the directory whose file systems are watched.
	Root string
	// Mask is what is asked for; 0 is notify.DefaultMask.
	Mask notify.Mask
	// DropPid is a thread group whose events are dropped; 0 is none.
	DropPid int
	// Ledger, if not nil, is asked about every record.
	Ledger notify.Ledger
	Logger *slog.Logger
	// LimitedQueue leaves the queue at fs.fanotify.max_queued_events.
	LimitedQueue bool
	// InodeMarks asks for no filesystem mark even where it would work.
	InodeMarks bool
	// Dropping says that the caller gives CAP_SYS_ADMIN up after Open: what is mounted later
	// gets inode marks.
	Dropping bool
}

// Watcher is a notify.Source, and a notify.Marker if InodeMarks says so.
type Watcher struct {
	log       *slog.Logger
	mask      uint64
	initFlags uint
	root      notify.Object
	rootFd    int // a readable descriptor of Root, also for open_by_handle_at(2)
	epfd      int // readable when any group is
	table     *mounts.Table
	loop      *loop.Loop
	inode     bool
	forced    bool
	refused   error
	buf       []byte
	parser    *parser

	mu     sync.Mutex
	closed bool
	marks  markTable
	groups []group
}

// group is one fanotify group. The first takes every mark that it can; each further one
// is for one file system with a weak fsid.
type group struct {
	fd int
	fs uint64 // file system of a further group
}

// Open sets the marks for Root and all that is mounted below it. The error wraps
// notify.ErrNotSupported if this kernel, these privileges or Root's file
// system do not allow it.
func Open(o Options) (*Watcher, error) {
	root, err := resolve(o.Root)
	if err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Mask == 0 {
		o.Mask = notify.DefaultMask
	}
	w := &Watcher{
		log:       o.Logger,
		mask:      fanMask(o.Mask),
		initFlags: initFlags(o.LimitedQueue),
		rootFd:    -1,
		epfd:      -1,
		buf:       make([]byte, bufLen),
		parser:    newParser(),
		marks:     newMarkTable(),
	}
	if err := w.open(root, o); err != nil {
		if w.table != nil {
			w.table.Close()
		}
		w.free()
		return nil, fmt.Errorf("fanotify on %s: %w", root, err)
	}
	return w, nil
}

func (w *Watcher) open(root string, o Options) error {
	var err error
	if w.rootFd, err = unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	if w.root, _, err = sys.ObjectOf(w.rootFd); err != nil {
		return err
	}
	if w.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	if _, err := w.addGroup(0); err != nil {
		return err
	}
	if w.table, err = mounts.Open(root); err != nil {
		return err
	}
	if err := w.markFilesystems(o.InodeMarks); err != nil {
		return err
	}
	w.inode = w.inode || o.Dropping
	w.loop, err = loop.New(loop.Config{
		Queue: (*queue)(w), Mounts: w.table, OnMount: w.onMount,
		DropPid: o.DropPid, Ledger: o.Ledger, Logger: o.Logger,
	})
	return err
}

// Run is notify.Source's.
func (w *Watcher) Run(ctx context.Context, emit func([]notify.Event)) error {
	return w.loop.Run(ctx, emit)
}

// Barrier is notify.Barrier's.
func (w *Watcher) Barrier(ctx context.Context) error { return w.loop.Barrier(ctx) }

// Close is notify.Source's. It waits for Run, so emit must not call it.
func (w *Watcher) Close() error {
	if w.loop.Close() {
		w.free()
	}
	return nil
}

// InodeMarks reports whether some directories are heard of only once they were marked.
func (w *Watcher) InodeMarks() bool { return w.inode }

// Covered reports whether a filesystem mark hears of everything on obj's file system.
func (w *Watcher) Covered(obj notify.Object) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.marks.covered[coverKey(obj)]
}

// Refused is the first error that made InodeMarks true; nil if they were asked for.
func (w *Watcher) Refused() error { return w.refused }

func (w *Watcher) free() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for _, g := range w.groups {
		unix.Close(g.fd)
	}
	w.groups = nil
	w.marks.closeAll()
	for _, fd := range []int{w.epfd, w.rootFd} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	w.epfd, w.rootFd = -1, -1
}

// addGroup makes a group, with mu held or before the Watcher is shared.
func (w *Watcher) addGroup(fs uint64) (int, error) {
	fd, err := unix.FanotifyInit(w.initFlags, unix.O_RDONLY)
	if err != nil {
		return -1, unsupported("fanotify_init", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	if err := unix.EpollCtl(w.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("epoll_ctl: %w", err)
	}
	w.groups = append(w.groups, group{fd: fd, fs: fs})
	return fd, nil
}

// queue is the Watcher as the loop sees it.
type queue Watcher

func (q *queue) Fd() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.groups) == 1 {
		// Most watchers have one group, and epoll only adds to each wake. A group that is
		// added while the loop sleeps wakes it.
		return q.groups[0].fd
	}
	return q.epfd
}

func (q *queue) Read(dst []notify.Raw, keep func(*notify.Raw) bool) ([]notify.Raw, bool, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	empty := true
	for _, g := range q.groups {
		n, err := unix.Read(g.fd, q.buf)
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if errors.Is(err, unix.EINTR) {
			empty = false
			continue
		}
		if err != nil {
			return dst, false, fmt.Errorf("read fanotify queue: %w", err)
		}
		if n > len(q.buf)-maxRecord {
			empty = false // there was no room for another
		}
		for b := q.buf[:n]; len(b) > 0; {
			var r notify.Raw
			if r, b, err = q.parser.next(b); err != nil {
				return dst, false, err
			}
			if q.marks.translate(&r) && keep(&r) {
				dst = append(dst, r)
			}
		}
	}
	return dst, empty, nil
}

// Torn is loop.Tearer's: after an exchange, and after few other renames, something stands at the old name.
func (q *queue) Torn(r *notify.Raw) bool {
	if r.Mask&notify.Rename == 0 || r.Dir.IsZero() || r.NewDir.IsZero() || r.Dir.FS != q.root.FS {
		return false
	}
	dir, err := sys.OpenByHandle(q.rootFd, r.Dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	if unix.Fstatat(dir, r.Name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false
	}
	return st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 // a whiteout comes without a record
}

// maxRecord is more than the longest record: its metadata and three names with handles.
const maxRecord = 4096

// fanMask is the fanotify mask that asks for m.
func fanMask(m notify.Mask) uint64 {
	const same = notify.Access | notify.Modify | notify.Attrib | notify.CloseWrite | notify.CloseNowrite |
		notify.Open | notify.Create | notify.Delete | notify.DeleteSelf
	f := uint64(m & same)
	if m&(notify.Moves|notify.Rename) != 0 {
		f |= unix.FAN_RENAME
	}
	return f | unix.FAN_ONDIR
}

// inodeMask is what is asked of the mark on dir. The parent's mark tells that dir was deleted, so its
// own need not, unless it is the root.
func (w *Watcher) inodeMask(dir notify.Object) uint64 {
	m := w.mask | unix.FAN_EVENT_ON_CHILD
	if dir != w.root {
		m &^= unix.FAN_DELETE_SELF
	}
	return m
}

func initFlags(limited bool) uint {
	f := uint(unix.FAN_CLASS_NOTIF | unix.FAN_REPORT_DFID_NAME_TARGET | unix.FAN_UNLIMITED_MARKS |
		unix.FAN_CLOEXEC | unix.FAN_NONBLOCK)
	if !limited {
		f |= unix.FAN_UNLIMITED_QUEUE
	}
	return f
}

// unsupported adds notify.ErrNotSupported to those errors that mean it.
func unsupported(op string, err error) error {
	for _, e := range []error{unix.EPERM, unix.ENOSYS, unix.EINVAL, unix.EXDEV, unix.ENODEV, unix.EOPNOTSUPP} {
		if errors.Is(err, e) {
			return fmt.Errorf("%s: %w: %w", op, err, notify.ErrNotSupported)
		}
	}
	return fmt.Errorf("%s: %w", op, err)
}

// resolve makes path absolute and free of symlinks, as the mount table has it.
func resolve(path string) (string, error) {
	if strings.IndexByte(path, 0) >= 0 {
		return "", fmt.Errorf("path %q: %w", path, unix.EINVAL)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("path %s: %w", path, err)
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", fmt.Errorf("path %s: %w", path, err)
	}
	return real, nil
}
