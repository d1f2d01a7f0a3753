package replay

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// OpenDir implements fuse.RawFileSystem.
func (f *FS) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if ours(in.NodeId) {
		return fuse.Status(syscall.ESTALE)
	}
	return f.RawFileSystem.OpenDir(cancel, in, out)
}

// ReadDir implements fuse.RawFileSystem. Directories may be opened without a request.
func (f *FS) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if ours(in.NodeId) {
		return fuse.ENOENT // as in a directory that was removed
	}
	return f.RawFileSystem.ReadDir(cancel, in, out)
}

// ReadDirPlus implements fuse.RawFileSystem.
func (f *FS) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if ours(in.NodeId) {
		return fuse.ENOENT
	}
	return f.RawFileSystem.ReadDirPlus(cancel, in, out)
}

// Readlink implements fuse.RawFileSystem.
func (f *FS) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	if ours(h.NodeId) {
		return nil, fuse.Status(syscall.ESTALE)
	}
	return f.RawFileSystem.Readlink(cancel, h)
}

// StatFs implements fuse.RawFileSystem. A ghost is on the file system that the root is on.
func (f *FS) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	if ours(h.NodeId) {
		root := *h
		root.NodeId = rootID
		h = &root
	}
	return f.RawFileSystem.StatFs(cancel, h, out)
}

// Statx implements fuse.RawFileSystem.
func (f *FS) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	if !ours(in.NodeId) {
		st := f.RawFileSystem.Statx(cancel, in, out)
		if f.limit(in.NodeId) != 0 {
			out.AttrValid, out.AttrValidNsec = 0, 0
		}
		return st
	}
	var a fuse.Attr
	st := f.ghostAttr(in.NodeId, &a)
	if st.Ok() {
		out.Statx = fuse.Statx{Mask: unix.STATX_BASIC_STATS, Ino: a.Ino, Mode: uint16(a.Mode), Nlink: a.Nlink, Blksize: a.Blksize}
	}
	return st
}

func (f *FS) ghostAttr(nodeid uint64, out *fuse.Attr) fuse.Status {
	n := f.view.node(nodeid)
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	f.view.fillGhost(n, out)
	return fuse.OK
}

// fillGhost makes attributes for something that has none.
func (v *view) fillGhost(n *vnode, out *fuse.Attr) {
	*out = fuse.Attr{Ino: n.id, Mode: n.mode() | 0o600, Nlink: max(v.linksOf(n), 1), Blksize: 4096}
	switch n.mode() {
	case unix.S_IFDIR:
		out.Mode |= 0o700
	case unix.S_IFLNK:
		out.Mode |= 0o777
	}
}
