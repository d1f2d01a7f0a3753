package passthrough

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// GetAttr implements fuse.RawFileSystem.
func (fs *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := fs.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	var fd *sys.FD
	if in.Flags()&fuse.FUSE_GETATTR_FH != 0 {
		if f := fs.files.get(in.Fh(), n); f != nil {
			fd = f.fd
		}
	}
	if fd == nil {
		if fd, err = fs.ref(n); err != nil {
			return status(err)
		}
	}
	defer fd.Release()
	return status(fs.stat(n, fd.Int(), out))
}

func (fs *FS) stat(n *node, fd int, out *fuse.AttrOut) error {
	var st unix.Stat_t
	if err := fs.fstat(fd, &st); err != nil {
		return err
	}
	fillAttr(&out.Attr, n, &st)
	if fs.cacheable(n, uint64(st.Nlink)) {
		out.SetTimeout(fs.attrTimeout())
	}
	return nil
}

// SetAttr implements fuse.RawFileSystem.
func (fs *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if fs.opts.ReadOnly {
		return fuse.EROFS
	}
	n, err := fs.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	var file *openFile
	if fh, ok := in.GetFh(); ok {
		file = fs.files.get(fh, n)
	}
	var fd *sys.FD
	if file != nil {
		fd = file.fd
	} else if fd, err = fs.refNamed(n); err != nil {
		return status(err)
	}
	defer fd.Release()
	if fs.opts.Ledger != nil {
		defer fs.expectOn(n, setattrMasks(in)...)()
	}
	if err := fs.setAttr(n, fd.Int(), file, in); err != nil {
		return status(err)
	}
	return status(fs.stat(n, fd.Int(), out))
}

// setattrMasks lists what the system calls of setAttr make fsnotify say, one each.
func setattrMasks(in *fuse.SetAttrIn) (masks []notify.Mask) {
	const times = fuse.FATTR_ATIME | fuse.FATTR_MTIME
	if in.Valid&fuse.FATTR_MODE != 0 {
		masks = append(masks, notify.Attrib)
	}
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		masks = append(masks, notify.Attrib)
	}
	if in.Valid&fuse.FATTR_SIZE != 0 {
		masks = append(masks, notify.Modify)
	}
	switch in.Valid & times {
	case times:
		masks = append(masks, notify.Attrib)
	case fuse.FATTR_MTIME:
		masks = append(masks, notify.Modify)
	case fuse.FATTR_ATIME:
		masks = append(masks, notify.Access)
	}
	return masks
}

func (fs *FS) setAttr(n *node, fd int, file *openFile, in *fuse.SetAttrIn) error {
	path := sys.ProcPath(fd)
	if mode, ok := in.GetMode(); ok {
		chmod := func() error { return unix.Fchmodat(unix.AT_FDCWD, path, mode, 0) }
		if file != nil {
			chmod = func() error { return unix.Fchmod(fd, mode) }
		}
		if err := chmod(); err != nil {
			return err
		}
	}
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		uid, gid := -1, -1
		if id, ok := in.GetUID(); ok {
			uid = int(id)
		}
		if id, ok := in.GetGID(); ok {
			gid = int(id)
		}
		if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if size, ok := in.GetSize(); ok {
		if n.typ() != unix.S_IFREG {
			return unix.EINVAL
		}
		truncate := func() error {
			if file != nil && file.writable() {
				return unix.Ftruncate(fd, int64(size))
			}
			return fs.nameless(n, unix.Truncate(path, int64(size)))
		}
		var err error
		if in.Valid&fuse.FATTR_KILL_SUIDGID != 0 {
			err = fs.withoutFsetid(&in.InHeader, truncate)
		} else {
			err = truncate()
		}
		if err != nil {
			return err
		}
	}
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) == 0 {
		return nil
	}
	ts := []unix.Timespec{
		timespec(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
		timespec(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
	}
	return unix.UtimesNanoAt(fd, "", ts, unix.AT_EMPTY_PATH)
}

func timespec(valid, set, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case valid&set == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
}

// Statx implements fuse.RawFileSystem. The kernel asks only when somebody wants the birth time.
func (fs *FS) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	n, err := fs.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	fd, err := fs.ref(n)
	if err != nil {
		return status(err)
	}
	defer fd.Release()
	var st unix.Statx_t
	mask := int(in.SxMask) & (unix.STATX_BASIC_STATS | unix.STATX_BTIME)
	if err := unix.Statx(fd.Int(), "", unix.AT_EMPTY_PATH, mask, &st); err != nil {
		return status(err)
	}
	st.Ino = n.ino(st.Ino)
	out.FromStatx(&st)
	if fs.cacheable(n, uint64(st.Nlink)) {
		out.SetTimeout(fs.attrTimeout())
	}
	return fuse.OK
}

// Access implements fuse.RawFileSystem. With default_permissions it is not called.
func (fs *FS) Access(_ <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	n, err := fs.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	fd, err := fs.ref(n)
	if err != nil {
		return status(err)
	}
	defer fd.Release()
	return status(fs.asCaller(&in.InHeader, false, func() error {
		return unix.Faccessat2(fd.Int(), "", in.Mask, unix.AT_EMPTY_PATH|unix.AT_EACCESS)
	}))
}

// Readlink implements fuse.RawFileSystem.
func (fs *FS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	n, err := fs.node(h.NodeId)
	if err != nil {
		return nil, status(err)
	}
	if n.typ() != unix.S_IFLNK {
		return nil, fuse.EINVAL
	}
	fd, err := fs.ref(n)
	if err != nil {
		return nil, status(err)
	}
	defer fd.Release()
	buf := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(fd.Int(), "", buf)
	if err != nil {
		return nil, status(err)
	}
	return buf[:size], fuse.OK
}
