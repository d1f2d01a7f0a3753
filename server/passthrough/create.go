package passthrough

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// newEntry is what the operations that make a name have in common: make runs with the
// caller's ids in dir, and what it has made is entered.
func (fs *FS) newEntry(h *fuse.InHeader, name string, mode uint32, out *fuse.EntryOut, mk func(dir int) error, masks ...notify.Mask) fuse.Status {
	p, dir, err := fs.parent(h.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer dir.Release()
	defer fs.expect(p, name, masks...)()
	err = fs.asCaller(h, mode&unix.S_ISGID != 0, func() error { return mk(dir.Int()) })
	if err != nil {
		return status(err)
	}
	return status(fs.lookup(p, dir.Int(), name, out))
}

// parent prepares a change of id's entry name.
func (fs *FS) parent(id uint64, name string) (*node, *sys.FD, error) {
	if fs.opts.ReadOnly {
		return nil, nil, unix.EROFS
	}
	if !validName(name) {
		return nil, nil, unix.EINVAL
	}
	p, err := fs.node(id)
	if err != nil {
		return nil, nil, err
	}
	dir, err := fs.ref(p)
	return p, dir, gone(err)
}

// maskMode applies the caller's umask, unless the parent's default ACL replaces it: with
// CAP_DONT_MASK that is our decision. Without it the kernel has
// applied it already, and it does no harm to do so again.
func (fs *FS) maskMode(p uint64, mode, umask uint32) uint32 {
	if umask&0o777 == 0 || mode&umask == 0 {
		return mode
	}
	if n, err := fs.node(p); err == nil {
		if fd, err := fs.ref(n); err == nil {
			defer fd.Release()
			if size, err := unix.Getxattr(sys.ProcPath(fd.Int()), "system.posix_acl_default", nil); err == nil && size > 0 {
				return mode
			}
		}
	}
	return mode &^ (umask & 0o777)
}

// Mknod implements fuse.RawFileSystem.
func (fs *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	mode := fs.maskMode(in.NodeId, in.Mode, in.Umask)
	return fs.newEntry(&in.InHeader, name, mode, out, func(dir int) error {
		return unix.Mknodat(dir, name, mode, int(in.Rdev))
	}, notify.Create)
}

// Mkdir implements fuse.RawFileSystem.
func (fs *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	mode := fs.maskMode(in.NodeId, in.Mode, in.Umask)
	return fs.newEntry(&in.InHeader, name, 0, out, func(dir int) error {
		return unix.Mkdirat(dir, name, mode)
	}, notify.Create|notify.IsDir)
}

// Symlink implements fuse.RawFileSystem.
func (fs *FS) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return fs.newEntry(h, name, 0, out, func(dir int) error {
		return unix.Symlinkat(target, dir, name)
	}, notify.Create)
}

// Link implements fuse.RawFileSystem.
func (fs *FS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	p, dir, err := fs.parent(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer dir.Release()
	n, err := fs.node(in.Oldnodeid)
	if err != nil {
		return status(err)
	}
	fd, err := fs.refNamed(n)
	if err != nil {
		return status(err)
	}
	defer fd.Release()
	defer fs.expect(p, name, notify.Create)()
	// The magic link leads to the object itself, so a symbolic link is linked, not followed.
	if err := unix.Linkat(unix.AT_FDCWD, sys.ProcPath(fd.Int()), dir.Int(), name, unix.AT_SYMLINK_FOLLOW); err != nil {
		return status(err)
	}
	fs.settlePin(n)
	return status(fs.lookup(p, dir.Int(), name, out))
}

// Create implements fuse.RawFileSystem.
func (fs *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	p, dir, err := fs.parent(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer dir.Release()
	mode := fs.maskMode(in.NodeId, in.Mode, in.Umask) & 0o7777
	flags := hostFlags(in.Flags) | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	raw := -1
	defer fs.expect(p, name, notify.Create)()
	err = fs.asCaller(&in.InHeader, mode&unix.S_ISGID != 0, func() (err error) {
		raw, err = sys.Retry(func() (int, error) { return unix.Openat(dir.Int(), name, flags, mode) })
		return err
	})
	if err == unix.EEXIST && in.Flags&unix.O_EXCL == 0 {
		// The kernel believed that there was nothing, so it has not checked
		// whether the caller may open what is there now. ESTALE makes it look again.
		return fuse.Status(unix.ESTALE)
	}
	if err != nil {
		return status(err)
	}
	return status(fs.opened(p, name, raw, in.Flags, out))
}

// opened enters a file that was just made and makes a handle of raw.
func (fs *FS) opened(p *node, name string, raw int, flags uint32, out *fuse.CreateOut) error {
	n, _, err := fs.enter(p, name, raw, false, &out.EntryOut)
	if err != nil {
		unix.Close(raw)
		return err
	}
	if err := fs.admit(n, raw, flags, &out.OpenOut); err != nil {
		unix.Close(raw)
		fs.Forget(n.id, 1)
		return err
	}
	if fs.opts.NoOpen {
		fs.ios.put(&openFile{n: n, fd: sys.NewFD(raw), flags: flags})
		return nil
	}
	out.Fh = fs.files.add(n, raw, flags, name != "")
	return nil
}

// Tmpfile implements fuse.RawFileSystem.
func (fs *FS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if fs.opts.ReadOnly {
		return fuse.EROFS
	}
	p, err := fs.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	dir, err := fs.ref(p)
	if err != nil {
		return status(gone(err))
	}
	defer dir.Release()
	mode := fs.maskMode(in.NodeId, in.Mode, in.Umask) & 0o7777
	flags := hostFlags(in.Flags)&^unix.O_TRUNC | unix.O_TMPFILE | int(in.Flags&unix.O_EXCL) | unix.O_CLOEXEC
	raw := -1
	err = fs.asCaller(&in.InHeader, mode&unix.S_ISGID != 0, func() (err error) {
		raw, err = sys.Retry(func() (int, error) { return unix.Openat(dir.Int(), ".", flags, mode) })
		return err
	})
	if err != nil {
		return status(err)
	}
	return status(fs.opened(p, "", raw, in.Flags, out))
}
