package passthrough

import (
	"bytes"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// GetXAttr implements fuse.RawFileSystem.
func (fs *FS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	n, err := fs.node(h.NodeId)
	if err != nil {
		return 0, status(err)
	}
	// The kernel asks before the first write to each file, which is open then: that spares the way through /proc.
	if fd := n.openFD(); fd != nil {
		defer fd.Release()
		size, err := unix.Fgetxattr(fd.Int(), attr, dest)
		return uint32(max(size, 0)), status(err)
	}
	fd, err := fs.ref(n)
	if err != nil {
		return 0, status(err)
	}
	defer fd.Release()
	size, err := unix.Getxattr(sys.ProcPath(fd.Int()), attr, dest)
	return uint32(max(size, 0)), status(err)
}

// openFD returns the descriptor of a file that the guest has open, with a reference, or nil.
func (n *node) openFD() *sys.FD {
	n.mu.Lock()
	defer n.mu.Unlock()
	for f := n.heldLocked().files; f != nil; f = f.next {
		if f.fd.Acquire() {
			return f.fd
		}
	}
	return nil
}

// ListXAttr implements fuse.RawFileSystem. Names in trusted. are for who has CAP_SYS_ADMIN, which we
// cannot see; root stands in for it.
func (fs *FS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n, err := fs.node(h.NodeId)
	if err != nil {
		return 0, status(err)
	}
	fd, err := fs.ref(n)
	if err != nil {
		return 0, status(err)
	}
	defer fd.Release()
	path := sys.ProcPath(fd.Int())
	if h.Uid == 0 {
		size, err := unix.Listxattr(path, dest)
		return uint32(max(size, 0)), status(err)
	}
	all := make([]byte, 64<<10) // XATTR_LIST_MAX
	size, err := unix.Listxattr(path, all)
	if err != nil {
		return 0, status(err)
	}
	var names []byte
	for name := range bytes.SplitAfterSeq(all[:size], []byte{0}) {
		if !bytes.HasPrefix(name, []byte("trusted.")) {
			names = append(names, name...)
		}
	}
	if len(dest) > 0 && len(names) > len(dest) {
		return uint32(len(names)), fuse.ERANGE
	}
	copy(dest, names)
	return uint32(len(names)), fuse.OK
}

// SetXAttr implements fuse.RawFileSystem.
func (fs *FS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	return fs.changeXAttr(in.NodeId, func(path string) error {
		set := func() error { return unix.Setxattr(path, attr, data, int(in.Flags)) }
		if in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0 {
			return fs.withoutFsetid(&in.InHeader, set)
		}
		return set()
	})
}

// RemoveXAttr implements fuse.RawFileSystem.
func (fs *FS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string) fuse.Status {
	return fs.changeXAttr(h.NodeId, func(path string) error { return unix.Removexattr(path, attr) })
}

func (fs *FS) changeXAttr(id uint64, change func(path string) error) fuse.Status {
	if fs.opts.ReadOnly {
		return fuse.EROFS
	}
	n, err := fs.node(id)
	if err != nil {
		return status(err)
	}
	fd, err := fs.refNamed(n)
	if err != nil {
		return status(err)
	}
	defer fd.Release()
	defer fs.expectOn(n, notify.Attrib)()
	return status(change(sys.ProcPath(fd.Int())))
}
