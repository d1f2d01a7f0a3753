package passthrough

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// maxCopy bounds one COPY_FILE_RANGE, which cannot be interrupted. The kernel
// takes a short copy for what it is.
const maxCopy = 64 << 20

// fileRead is a fuse.ReadResult that reads straight into the reply. It holds a reference to the
// file, since the read happens after Read has returned.
type fileRead struct {
	fd   *sys.FD
	off  int64
	size int
}

func (r *fileRead) Size() int { return r.size }
func (r *fileRead) Done()     { r.fd.Release() }

func (r *fileRead) Bytes(buf []byte) ([]byte, fuse.Status) {
	n, err := sys.Retry(func() (int, error) { return unix.Pread(r.fd.Int(), buf[:min(len(buf), r.size)], r.off) })
	if err != nil {
		return nil, status(err)
	}
	return buf[:n], fuse.OK
}

// Readv is what fuse.ProtocolServer uses.
func (r *fileRead) Readv(dst [][]byte) (int, fuse.Status) {
	n, err := sys.Retry(func() (int, error) {
		if len(dst) == 1 {
			return unix.Pread(r.fd.Int(), dst[0], r.off)
		}
		return unix.Preadv(r.fd.Int(), dst, r.off)
	})
	return max(n, 0), status(err)
}

// Read implements fuse.RawFileSystem.
func (fs *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	f, err := fs.file(in.NodeId, in.Fh, false)
	if err != nil {
		return nil, status(err)
	}
	return &fileRead{fd: f.fd, off: int64(in.Offset), size: int(in.Size)}, fuse.OK
}

// Write implements fuse.RawFileSystem.
func (fs *FS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	return fs.Writev(cancel, in, [][]byte{data})
}

// Writev implements fuse.RawFileSystem.
func (fs *FS) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	if fs.opts.ReadOnly {
		return 0, fuse.EROFS
	}
	f, err := fs.file(in.NodeId, in.Fh, true)
	if err != nil {
		return 0, status(err)
	}
	defer f.fd.Release()
	if fs.opts.Ledger != nil {
		defer fs.expectOn(f.n, notify.Modify)()
	}
	var n int
	write := func() (err error) {
		cached := in.WriteFlags&fuse.WRITE_CACHE != 0
		if fs.opts.NoOpen {
			n, err = f.writeAs(data, int64(in.Offset), in.Flags, cached)
		} else {
			n, err = f.write(data, int64(in.Offset), cached)
		}
		return err
	}
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 && f.setID() {
		err = fs.withoutFsetid(&in.InHeader, write)
	} else {
		err = write()
	}
	if err != nil {
		return 0, status(err)
	}
	return uint32(n), fuse.OK
}

// setID reports whether the file has set-id bits that a write has to clear. The flag comes
// with every write of an unprivileged caller, and changing capabilities is dear.
func (f *openFile) setID() bool {
	var st unix.Stat_t
	err := unix.Fstat(f.fd.Int(), &st)
	return err != nil || st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0
}

// write writes at off, or at the end if the file was opened to append. A page of a mapping
// (cached) has its place, whichever open file the kernel sends it through.
func (f *openFile) write(data [][]byte, off int64, cached bool) (int, error) {
	if cached && f.flags&unix.O_APPEND != 0 {
		n, err := sys.Retry(func() (int, error) { return unix.Pwritev2(f.fd.Int(), data, off, unix.RWF_NOAPPEND) })
		if err != unix.EOPNOTSUPP && err != unix.EINVAL {
			return n, err
		}
		raw, err := sys.Reopen(f.fd.Int(), unix.O_WRONLY) // RWF_NOAPPEND is of 6.9
		if err != nil {
			return 0, err
		}
		defer unix.Close(raw)
		return sys.Retry(func() (int, error) { return unix.Pwritev(raw, data, off) })
	}
	return sys.Retry(func() (int, error) {
		if len(data) == 1 {
			return unix.Pwrite(f.fd.Int(), data[0], off)
		}
		return unix.Pwritev(f.fd.Int(), data, off)
	})
}

// CopyFileRange implements fuse.RawFileSystem.
func (fs *FS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if fs.opts.ReadOnly {
		return 0, fuse.EROFS
	}
	from, err := fs.file(in.NodeId, in.FhIn, false)
	if err != nil {
		return 0, status(err)
	}
	defer from.fd.Release()
	to, err := fs.file(in.NodeIdOut, in.FhOut, true)
	if err != nil {
		return 0, status(err)
	}
	defer to.fd.Release()
	defer fs.expectOn(to.n, notify.Modify)()
	offIn, offOut := int64(in.OffIn), int64(in.OffOut)
	n, err := sys.Retry(func() (int, error) {
		return unix.CopyFileRange(from.fd.Int(), &offIn, to.fd.Int(), &offOut, int(min(in.Len, maxCopy)), int(in.Flags))
	})
	return uint32(max(n, 0)), status(err)
}
