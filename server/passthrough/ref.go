package passthrough

import (
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
)

// ref returns a descriptor of n with a reference for the caller. It is O_PATH, or
// that of an open file. ESTALE: the object is gone.
func (fs *FS) ref(n *node) (*sys.FD, error) {
	if fd := n.held(); fd != nil {
		return fd, nil
	}
	if n.dev.mnt.fd == nil {
		return nil, unix.ESTALE // forgotten meanwhile
	}
	raw, err := fs.openHandle(n, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		// The host may have unlinked it while it was being opened here.
		if fd := n.held(); fd != nil {
			return fd, nil
		}
		return nil, err
	}
	fd := sys.NewFD(raw)
	if n.isDir() {
		fd = fs.ring.add(n, fd)
	}
	return fd, nil
}

// held returns a descriptor that n has, or nil.
func (n *node) held() *sys.FD {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.heldLocked()
	switch {
	case h.pin != nil && h.pin.Acquire():
		return h.pin
	case h.cached != nil && h.cached.Acquire():
		h.used = true
		return h.cached
	}
	for f := h.files; f != nil; f = f.next {
		if f.fd.Acquire() {
			return f.fd
		}
	}
	return nil
}

// pinned returns n's pin with a reference, or nil.
func (n *node) pinned() *sys.FD {
	n.mu.Lock()
	defer n.mu.Unlock()
	if pin := n.heldLocked().pin; pin != nil && pin.Acquire() {
		return pin
	}
	return nil
}

// namedOpen returns n's pin, or a descriptor of n that was opened by name and is open still, with a reference; or nil.
// The kernel keeps a descriptor's name when the host renames the file.
func (n *node) namedOpen() *sys.FD {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.heldLocked()
	if h.pin != nil && h.pin.Acquire() {
		return h.pin
	}
	for f := h.files; f != nil; f = f.next {
		if f.named && f.fd.Acquire() {
			return f.fd
		}
	}
	return nil
}

func (fs *FS) openHandle(n *node, flags int) (int, error) {
	raw, err := sys.OpenByHandle(n.dev.mnt.fd.Int(), n.object(), flags)
	if err == unix.EMFILE || err == unix.ENFILE {
		fs.ring.shrink()
		raw, err = sys.OpenByHandle(n.dev.mnt.fd.Int(), n.object(), flags)
	}
	return raw, err
}

// refNamed is ref, but the descriptor was opened by name where the name that n
// was last seen under still leads to it: so that who watches the directory hears of what is
// done through the descriptor.
func (fs *FS) refNamed(n *node) (*sys.FD, error) {
	if n.isDir() || n.dev.mnt.fd == nil {
		return fs.ref(n)
	}
	if fd := n.namedOpen(); fd != nil {
		return fd, nil
	}
	if fd := fs.refHint(n); fd != nil {
		return fd, nil
	}
	return fs.ref(n)
}

func (fs *FS) refHint(n *node) *sys.FD {
	parent, name := n.hint()
	if name == "" {
		return nil
	}
	p := fs.nodes.get(parent)
	if p == nil {
		return nil
	}
	dir, err := fs.ref(p)
	if err != nil {
		return nil
	}
	defer dir.Release()
	raw, err := fs.openPath(dir.Int(), name)
	if err != nil {
		return nil
	}
	if !n.isAt(raw) {
		unix.Close(raw)
		return nil
	}
	return sys.NewFD(raw)
}

// isAt reports whether fd refers to n's object on n's mount.
func (n *node) isAt(fd int) bool {
	var h sys.Handle
	kind, id, err := sys.HandleOf(fd, &h)
	return err == nil && kind != sys.HandleNone && id == n.dev.mnt.id &&
		h.Type == n.htype && string(h.Bytes()) == n.object().Handle
}

// known returns the node of what fd refers to, if the guest knows it. The lookup
// count is not raised: the node may be forgotten at any time. leaf says that it is no directory, if it is anything.
func (fs *FS) known(p *node, fd int, leaf bool) *node {
	var h sys.Handle
	kind, id, err := sys.HandleOf(fd, &h)
	if err != nil || kind == sys.HandleNone || id != p.dev.mnt.id {
		return nil
	}
	var st unix.Stat_t
	dev := p.dev
	if !leaf || fs.nodes.hasNumbered() { // what is no directory has its parent's file system id
		if err := unix.Fstat(fd, &st); err != nil {
			return nil
		}
		if dev, err = fs.device(p.dev.mnt, st.Dev, fd); err != nil {
			return nil
		}
	}
	n := fs.find(kind, &h, p.dev.mnt, dev, &st)
	if n != nil {
		fs.Forget(n.id, 1)
	}
	return n
}

// pinVictim gives the object at dir/name, if the guest knows it and it is about to lose its
// last name, a descriptor: it could not be opened by handle any more. undo is called when the
// name was not removed after all.
func (fs *FS) pinVictim(p *node, dir int, name string, leaf bool) (victim *node, undo func()) {
	if !fs.handles {
		if fs.opts.Ledger != nil {
			victim = fs.knownAt(p, dir, name)
		}
		return victim, nop
	}
	raw, err := fs.openPath(dir, name)
	if err != nil {
		return nil, nop
	}
	n := fs.known(p, raw, leaf)
	if n == nil || n.dev.mnt.fd == nil {
		unix.Close(raw)
		return n, nop
	}
	fd := sys.NewFD(raw)
	if !n.setPin(fd) {
		fd.Release()
		return n, nop
	}
	return n, func() { n.dropPin(fd) }
}

// settlePin drops the pin of an object that still has a name.
func (fs *FS) settlePin(n *node) {
	if n == nil || n.dev.mnt.fd == nil {
		return
	}
	fd := n.pinned()
	if fd == nil {
		return
	}
	defer fd.Release()
	var st unix.Stat_t
	if err := fs.fstat(fd.Int(), &st); err == nil && st.Nlink > 0 && fs.openable(n) {
		n.dropPin(fd)
	}
}

// openable reports whether n could do without its pin.
func (fs *FS) openable(n *node) bool {
	raw, err := fs.openHandle(n, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return false
	}
	unix.Close(raw)
	return true
}
