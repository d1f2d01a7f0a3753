package passthrough

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// defaultPassthroughMin is the size from which opening a backing file costs less than it saves, even if the pages were cached.
const defaultPassthroughMin = 1 << 20

// Backing is the connection, for files that the guest's kernel reads by itself.
type Backing interface {
	// BackingOpen has the kernel hold the file of fd, an O_PATH descriptor. The error wraps notify.ErrNotSupported
	// if there is no use in trying again, and unix.ELOOP if that holds for the file system only.
	BackingOpen(fd int) (id int32, err error)
	// BackingClose gives id back.
	BackingClose(id int32) error
	// StaleAttr makes the kernel ask again for the attributes of nodeid. It is called by a handler.
	StaleAttr(nodeid uint64)
}

// passage is where the files of a mount are opened for the kernel to read, if Options.Unheard wants a mount of
// its own for that.
type passage struct {
	once sync.Once
	fd   *sys.FD // opens handles; nil if it cannot be had
	off  atomic.Bool
}

// enter counts an open of n. If n is passed through, or nobody has it open and id is not 0, so is this
// open: by the backing id that is returned, which in the second case is id.
func (n *node) enter(id int32) int32 {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.holdLocked()
	if h.opens > 0 || h.opens == 0 && id == 0 {
		h.opens++
		return 0
	}
	if h.opens == 0 {
		h.backing = id
	}
	h.opens--
	return h.backing
}

// leave takes back what enter has counted, and returns the backing id that nobody has any more, or 0.
func (n *node) leave() (id int32) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.holdLocked()
	if h.opens > 0 {
		h.opens--
	} else if h.opens < 0 {
		if h.opens++; h.opens == 0 {
			id, h.backing = h.backing, 0
		}
	}
	return id
}

func (n *node) isOpen() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.heldLocked().opens != 0
}

// admit counts an open of n by flags, for which fd was opened, and says how the kernel does
// its I/O: see the package comment. EINVAL: the file system has no O_DIRECT.
func (fs *FS) admit(n *node, fd int, flags uint32, out *fuse.OpenOut) error {
	out.OpenFlags = fs.openFlags(n, flags)
	if fs.opts.Backing == nil {
		return nil
	}
	own := int32(0)
	if fs.worthwhile(n, fd, flags) {
		own = fs.register(n, fd)
	}
	id := n.enter(own)
	if own != 0 && id != own {
		fs.closeBacking(own) // others were faster
	}
	if id == 0 {
		if n.is(rewritten) {
			// What was written beside the kernel's pages is not in them.
			n.flags.And(^uint32(rewritten))
			out.OpenFlags &^= fuse.FOPEN_KEEP_CACHE
		}
		return nil
	}
	if flags&unix.O_DIRECT != 0 {
		// The kernel asks the backing file for it, and all that it can say of an error is EIO.
		probe, err := sys.Reopen(fd, unix.O_RDONLY|unix.O_DIRECT)
		if err == unix.EINVAL {
			fs.leave(n)
			return err
		}
		if err == nil {
			unix.Close(probe)
		}
	}
	out.OpenFlags = out.OpenFlags&^fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_PASSTHROUGH
	out.BackingID = id
	fs.passed.Add(1)
	if flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0 {
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
		n.set(rewritten)
		if flags&unix.O_ACCMODE == unix.O_RDWR {
			n.set(mapped)
		}
	}
	return nil
}

// worthwhile reports whether an open by flags should begin passthrough.
func (fs *FS) worthwhile(n *node, fd int, flags uint32) bool {
	if fs.noPassage.Load() || n.dev.mnt.pass.off.Load() || n.isOpen() {
		return false
	}
	reads := flags&unix.O_ACCMODE == unix.O_RDONLY
	if n.is(mapped) && !(reads && n.unmapped(fd)) {
		return true
	}
	if !reads || flags&(unix.O_TRUNC|unix.O_DIRECT) != 0 {
		return false
	}
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Size >= fs.opts.PassthroughMin
}

// unmapped reports whether nobody can write to n's file any more, not even by a mapping whose
// descriptor is closed: a lease for reading, which fd takes for a moment, is given only then.
func (n *node) unmapped(fd int) bool {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		return false
	}
	// It ends with fd at the latest.
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
	n.flags.And(^uint32(mapped))
	return true
}

// register has the kernel hold n's file, and returns 0 where that does not work. The kernel gets a
// descriptor without an open file description, to which locks would cling.
func (fs *FS) register(n *node, fd int) int32 {
	raw, err := fs.openPassage(n, fd)
	if err != nil {
		return 0
	}
	defer unix.Close(raw)
	id, err := fs.opts.Backing.BackingOpen(raw)
	switch {
	case err == nil:
		return id
	case errors.Is(err, notify.ErrNotSupported):
		if fs.noPassage.CompareAndSwap(false, true) {
			fs.log.Info("files are read through the daemon", "reason", err)
		}
	case errors.Is(err, unix.ELOOP):
		fs.noPassageOn(n.dev.mnt, err)
	default:
		fs.log.Debug("a file is read through the daemon", "reason", err)
	}
	return 0
}

func (fs *FS) noPassageOn(m *mount, why error) {
	if m.pass.off.CompareAndSwap(false, true) {
		fs.log.Info("files of this mount are read through the daemon", "mount", m.id, "reason", why)
	}
}

// openPassage opens n's file for BackingOpen.
func (fs *FS) openPassage(n *node, fd int) (int, error) {
	if fs.opts.Unheard == nil {
		return sys.Reopen(fd, unix.O_PATH)
	}
	m := n.dev.mnt
	m.pass.once.Do(func() {
		var err error
		if m.pass.fd, err = fs.makePassage(m); err != nil {
			fs.noPassageOn(m, err)
		}
	})
	if m.pass.fd == nil {
		return -1, notify.ErrNotSupported
	}
	return sys.OpenByHandle(m.pass.fd.Int(), n.object(), unix.O_PATH|unix.O_NOFOLLOW)
}

// makePassage clones m. What the guest's kernel does with backing files is done through the
// clone, and so can be told from what the host does.
func (fs *FS) makePassage(m *mount) (*sys.FD, error) {
	if m.fd == nil {
		return nil, notify.ErrNotSupported
	}
	tree, err := unix.OpenTree(m.fd.Int(), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, err
	}
	defer unix.Close(tree)
	// What is mounted in SOURCE later is no business of the clone's, and would be kept busy by it.
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return nil, err
	}
	raw, err := sys.Reopen(tree, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	fd := sys.NewFD(raw)
	if err := fs.opts.Unheard(raw); err != nil {
		fd.Release()
		return nil, err
	}
	return fd, nil
}

// leave takes back an open that admit or OpenBeside has counted. The kernel says RELEASE after
// it has let go of the backing file.
func (fs *FS) leave(n *node) {
	if fs.opts.Backing == nil {
		return
	}
	if id := n.leave(); id != 0 {
		fs.closeBacking(id)
	}
}

// leaveWritten is leave where a file was written to beside passthrough.
func (fs *FS) leaveWritten(f *openFile) {
	if !f.writable() && f.n.is(mapped) {
		f.n.unmapped(f.fd.Int())
	}
	fs.leave(f.n)
	if f.writable() {
		// A mapping of the backing file has changed times that the kernel does not know of.
		fs.opts.Backing.StaleAttr(f.n.id)
	}
}

func (fs *FS) closeBacking(id int32) {
	if err := fs.opts.Backing.BackingClose(id); err != nil && !errors.Is(err, notify.ErrClosed) {
		fs.log.Warn("cannot give a backing file back", "id", id, "err", err)
	}
}

// Passed counts the guest's opens that were passed through.
func (fs *FS) Passed() uint64 { return fs.passed.Load() }

// OpenBeside counts an open of nodeid that somebody else answers, and by which nothing is read or written. While
// nodeid is passed through, out is changed to what the kernel takes.
func (fs *FS) OpenBeside(nodeid uint64, out *fuse.OpenOut) {
	n := fs.nodes.get(nodeid)
	if n == nil || fs.opts.Backing == nil {
		return
	}
	if id := n.enter(0); id != 0 {
		out.OpenFlags = out.OpenFlags&^fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_DIRECT_IO
		out.BackingID = id
	}
}

// ReleaseBeside takes an OpenBeside back.
func (fs *FS) ReleaseBeside(nodeid uint64) {
	if n := fs.nodes.get(nodeid); n != nil {
		fs.leave(n)
	}
}

// Passing reports whether opens of nodeid are passed through now.
func (fs *FS) Passing(nodeid uint64) bool {
	n := fs.nodes.get(nodeid)
	if n == nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.heldLocked().opens < 0
}
