package passthrough

import (
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

const pathFlags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC

// openPath opens dir's child without following or entering anything but a mount.
func (fs *FS) openPath(dir int, name string) (int, error) {
	for retried := false; ; {
		fd, err := unix.Openat(dir, name, pathFlags, 0)
		switch {
		case err == unix.EINTR:
			continue
		case (err == unix.EMFILE || err == unix.ENFILE) && !retried:
			fs.ring.shrink()
			retried = true
			continue
		}
		return fd, err
	}
}

// Lookup implements fuse.RawFileSystem.
func (fs *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if !validName(name) {
		return fuse.EINVAL
	}
	p, err := fs.node(h.NodeId)
	if err != nil {
		return status(err)
	}
	dir, err := fs.ref(p)
	if err != nil {
		return status(gone(err))
	}
	defer dir.Release()
	err = fs.lookup(p, dir.Int(), name, out)
	if keep := fs.negativeTimeout(); err == unix.ENOENT && keep > 0 && !p.is(volatile) {
		out.NodeId = 0
		out.SetEntryTimeout(keep)
		return fuse.OK
	}
	return status(err)
}

// gone turns "this directory is gone" into what a lookup in it says natively.
func gone(err error) error {
	if err == unix.ESTALE {
		return unix.ENOENT
	}
	return err
}

func (fs *FS) lookup(p *node, dir int, name string, out *fuse.EntryOut) error {
	fd, err := fs.openPath(dir, name)
	if err != nil {
		return err
	}
	return fs.enterPath(p, name, fd, out)
}

// enterPath is enter for an O_PATH descriptor, which becomes the node's or is closed.
func (fs *FS) enterPath(p *node, name string, fd int, out *fuse.EntryOut) error {
	n, kept, err := fs.enter(p, name, fd, true, out)
	if kept {
		return nil
	}
	if err == nil && n.isDir() && fs.wantsCached(n) {
		fs.ring.add(n, sys.NewFD(fd)).Release()
		return nil
	}
	unix.Close(fd)
	return err
}

func (fs *FS) wantsCached(n *node) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.heldLocked()
	return h.cached == nil && h.pin == nil && !n.gone
}

// enter finds or makes the node of what fd refers to, raises its lookup count and fills
// out. isPath says that fd is an O_PATH descriptor: if the node has to hold
// one, it takes fd and kept is true.
func (fs *FS) enter(p *node, name string, fd int, isPath bool, out *fuse.EntryOut) (n *node, kept bool, err error) {
	var h sys.Handle
	kind, id, err := sys.HandleOf(fd, &h)
	if err != nil {
		return nil, false, err
	}
	if kind == sys.HandleNone {
		if id, _, err = sys.MountOf(fd); err != nil {
			return nil, false, err
		}
	}
	m := p.dev.mnt
	if m.id != id || !m.acquire() {
		if m, err = fs.mount(id, fd); err != nil {
			return nil, false, err
		}
	}
	n, kept, st, err := fs.nodeOf(kind, &h, m, p, fd, isPath)
	if err != nil {
		return nil, false, err
	}
	n.sawAt(p.id, name)
	if n.isDir() {
		if err := fs.mark(n, fd); err != nil {
			n.set(volatile)
			fs.log.Warn("directory cannot be watched and will not be cached", "nodeid", n.id, "error", err)
		}
	}
	if p.is(volatile) {
		n.set(volatile)
	}
	fs.fill(n, p, &st, out)
	return n, kept, nil
}

// nodeOf is the part of enter that knows the identity. It consumes the reference to m.
func (fs *FS) nodeOf(kind sys.HandleKind, h *sys.Handle, m *mount, p *node, fd int, isPath bool) (n *node, kept bool, st unix.Stat_t, err error) {
	fresh := false
	defer func() {
		if !fresh {
			fs.releaseMount(m)
		}
	}()
	if err = fs.fstat(fd, &st); err != nil {
		return nil, false, st, err
	}
	dev, err := fs.device(m, st.Dev, fd)
	if err != nil {
		return nil, false, st, err
	}
	if n = fs.find(kind, h, m, dev, &st); n != nil {
		return n, false, st, nil
	}
	if fs.nodes.full(fs.opts.NodeLimit) {
		fs.tooMany.Do(func() { fs.log.Warn("the guest knows too many files", "limit", fs.opts.NodeLimit()) })
		return nil, false, st, unix.ENOMEM
	}
	if kind == sys.HandleNone {
		n = newNode(dev, st.Mode, notify.TypeInode, []byte(sys.InodeObject(dev.fsid, st.Ino, st.Dev).Handle))
	} else {
		n = newNode(dev, st.Mode, h.Type, h.Bytes())
	}
	// A file on another device than its directory cannot be a mount in the guest.
	if fs.opts.AnnounceSubmounts && (n.isDir() || dev.dev == p.dev.dev) {
		n.set(hostIno)
	}
	byHandle := kind == sys.HandleOpenable && m.fd != nil
	if !byHandle && fs.opts.FileHandles == HandleMandatory {
		return nil, false, st, unix.EOPNOTSUPP
	}
	pin := -1
	if !byHandle || st.Nlink == 0 {
		if pin = fd; !isPath {
			if pin, err = sys.Reopen(fd, unix.O_PATH); err != nil {
				return nil, false, st, err
			}
		}
		n.holdLocked().pin = sys.NewFD(pin)
	}
	n, fresh = fs.nodes.insert(n)
	if fresh {
		return n, pin == fd, st, nil
	}
	if pin >= 0 && pin != fd {
		unix.Close(pin)
	}
	return n, false, st, nil
}

// find looks for a known node, without allocating.
func (fs *FS) find(kind sys.HandleKind, h *sys.Handle, m *mount, dev *device, st *unix.Stat_t) *node {
	if kind != sys.HandleNone {
		b := h.Bytes()
		obj := notify.Object{FS: dev.fsid, Type: h.Type, Handle: unsafe.String(unsafe.SliceData(b), len(b))}
		if n := fs.nodes.find(obj, m); n != nil {
			return n
		}
		if !fs.nodes.hasNumbered() {
			return nil
		}
		// It may be known from before it had a handle. Numbered nodes hold a
		// descriptor, so the number has not been recycled.
	}
	return fs.nodes.find(sys.InodeObject(dev.fsid, st.Ino, st.Dev), m)
}

// fill fills out for n, seen in p.
func (fs *FS) fill(n, p *node, st *unix.Stat_t, out *fuse.EntryOut) {
	out.NodeId = n.id
	out.Generation = 0
	fillAttr(&out.Attr, n, st)
	if fs.opts.AnnounceSubmounts && n.isDir() && n.dev.dev != p.dev.dev {
		out.Attr.Flags |= fuse.ATTR_SUBMOUNT
	}
	if !p.is(volatile) {
		out.SetEntryTimeout(fs.entryTimeout())
	}
	if fs.cacheable(n, uint64(st.Nlink)) {
		out.SetAttrTimeout(fs.attrTimeout())
	}
}

func fillAttr(a *fuse.Attr, n *node, st *unix.Stat_t) {
	a.Ino = n.ino(st.Ino)
	a.Size, a.Blocks = uint64(st.Size), uint64(st.Blocks)
	a.Atime, a.Atimensec = uint64(st.Atim.Sec), uint32(st.Atim.Nsec)
	a.Mtime, a.Mtimensec = uint64(st.Mtim.Sec), uint32(st.Mtim.Nsec)
	a.Ctime, a.Ctimensec = uint64(st.Ctim.Sec), uint32(st.Ctim.Nsec)
	a.Mode, a.Nlink = st.Mode, uint32(st.Nlink)
	a.Uid, a.Gid = st.Uid, st.Gid
	a.Rdev, a.Blksize = uint32(st.Rdev), uint32(st.Blksize)
}

// mark has n marked before anybody is told of it. Mark and unmark of one
// object exclude each other, and unmark looks at the table: so a node that is made while
// an older one of the same object is forgotten keeps its mark.
func (fs *FS) mark(n *node, fd int) error {
	if fs.opts.Marker == nil || n.is(marked) {
		return nil
	}
	mu := fs.markLock(n.object())
	mu.Lock()
	defer mu.Unlock()
	if n.is(marked) {
		return nil
	}
	if err := fs.opts.Marker.Mark(n.object(), fd); err != nil {
		return err
	}
	n.set(marked)
	return nil
}

func (fs *FS) unmark(n *node) {
	if fs.opts.Marker == nil {
		return
	}
	mu := fs.markLock(n.object())
	mu.Lock()
	defer mu.Unlock()
	var buf [4]uint64
	if len(fs.nodes.ids(buf[:0], n.object())) == 0 {
		fs.opts.Marker.Unmark(n.object())
	}
}

func (fs *FS) markLock(obj notify.Object) *sync.Mutex {
	sum := uint32(2166136261) // FNV-1a
	for i := 0; i < len(obj.Handle); i++ {
		sum = (sum ^ uint32(obj.Handle[i])) * 16777619
	}
	return &fs.markMu[sum%uint32(len(fs.markMu))]
}
