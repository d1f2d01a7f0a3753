package passthrough

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// openFile is an open file of the guest. It has an open file description of its own on the host, so
// that flock(2) locks belong to it.
type openFile struct {
	n     *node
	fd    *sys.FD
	flags uint32
	// named says that fd was opened by name, so that watchers of the directory hear of what is done through it.
	named bool
	// next is the next open file of n. Guarded by n.mu.
	next *openFile
	io   ioUse
}

func (f *openFile) writable() bool { return f.flags&unix.O_ACCMODE != unix.O_RDONLY }

// fileTable maps the kernel's file handles. They count from 1 and are not used again.
type fileTable struct {
	mu   sync.RWMutex
	last uint64
	byFH map[uint64]*openFile
	dirs map[uint64]*stream
}

func (t *fileTable) init() {
	t.byFH = map[uint64]*openFile{}
	t.dirs = map[uint64]*stream{}
}

// add takes ownership of raw.
func (t *fileTable) add(n *node, raw int, flags uint32, named bool) uint64 {
	f := &openFile{n: n, fd: sys.NewFD(raw), flags: flags, named: named}
	n.mu.Lock()
	h := n.holdLocked()
	f.next, h.files = h.files, f
	n.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	t.byFH[t.last] = f
	return t.last
}

// get returns the file with a reference to its descriptor, or nil. n, if not nil, is
// whose file it has to be.
func (t *fileTable) get(fh uint64, n *node) *openFile {
	t.mu.RLock()
	f := t.byFH[fh]
	t.mu.RUnlock()
	if f == nil || (n != nil && f.n != n) || !f.fd.Acquire() {
		return nil
	}
	return f
}

func (t *fileTable) openDirs() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.dirs)
}

func (t *fileTable) remove(fh uint64) *openFile {
	t.mu.Lock()
	f := t.byFH[fh]
	delete(t.byFH, fh)
	t.mu.Unlock()
	if f != nil {
		f.unlist()
	}
	return f
}

// unlist takes f off its node's list.
func (f *openFile) unlist() {
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	for at := &f.n.holdLocked().files; *at != nil; at = &(*at).next {
		if *at == f {
			*at = f.next
			return
		}
	}
}

func (t *fileTable) closeAll() {
	t.mu.Lock()
	files, dirs := t.byFH, t.dirs
	t.init()
	t.mu.Unlock()
	for _, f := range files {
		f.unlist()
		f.fd.Release()
	}
	for _, s := range dirs {
		s.fd.Release()
	}
}

// hostFlags keeps the open flags that mean something on the host's side. O_DIRECT is not one: it
// would ask for alignment of our buffers, and the guest's kernel has bypassed its cache already.
func hostFlags(flags uint32) int {
	return int(flags) & (unix.O_ACCMODE | unix.O_APPEND | unix.O_TRUNC | unix.O_SYNC | unix.O_DSYNC | unix.O_NOATIME | unix.O_LARGEFILE)
}

// openFlags answers an open. Closing a file that cannot write needs no FLUSH: there are no errors to
// report, and the POSIX locks of the few who read-lock through it are ended by Release. If
// the file has locks now, closing it may have to end those of another descriptor, at once.
func (fs *FS) openFlags(n *node, flags uint32) (out uint32) {
	if fs.opts.KeepCache && !n.is(volatile) && !n.is(linked) {
		out = fuse.FOPEN_KEEP_CACHE
	}
	if flags&unix.O_ACCMODE == unix.O_RDONLY && n.lockState(false) == nil {
		out |= fuse.FOPEN_NOFLUSH
	}
	return out
}

// Open implements fuse.RawFileSystem.
func (fs *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if fs.opts.NoOpen {
		return fuse.ENOSYS
	}
	n, err := fs.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	if n.typ() != unix.S_IFREG {
		return fuse.Status(unix.ENXIO)
	}
	flags := hostFlags(in.Flags)
	changes := flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
	if changes && fs.opts.ReadOnly {
		return fuse.EROFS
	}
	if flags&unix.O_TRUNC != 0 {
		defer fs.expectOn(n, notify.Modify)()
	}
	raw := -1
	open := func() (err error) {
		raw, err = fs.openNode(n, flags, changes)
		return err
	}
	if in.Mode&fuse.OPEN_KILL_SUIDGID != 0 && flags&unix.O_TRUNC != 0 {
		err = fs.withoutFsetid(&in.InHeader, open)
	} else {
		err = open()
	}
	if err != nil {
		return status(err)
	}
	if err := fs.admit(n, raw, in.Flags, out); err != nil {
		unix.Close(raw)
		return status(err)
	}
	out.Fh = fs.files.add(n, raw, in.Flags, false)
	return fuse.OK
}

// openNode opens a regular file for I/O. A file that will be changed is opened
// by name where possible (see refNamed); one that is only read, in one call by handle.
func (fs *FS) openNode(n *node, flags int, changes bool) (int, error) {
	if !changes && n.dev.mnt.fd != nil {
		if pin := n.pinned(); pin != nil {
			pin.Release()
		} else if raw, err := fs.openHandle(n, flags); err == nil {
			return raw, nil
		}
	}
	fd, err := fs.refNamed(n)
	if err != nil {
		return -1, err
	}
	defer fd.Release()
	raw, err := sys.Reopen(fd.Int(), flags)
	if err == unix.EMFILE || err == unix.ENFILE {
		fs.ring.shrink()
		raw, err = sys.Reopen(fd.Int(), flags)
	}
	return raw, fs.nameless(n, err)
}

// nameless is what an error of opening n means, see Options.Landlocked.
func (fs *FS) nameless(n *node, err error) error {
	if err == unix.EACCES && fs.opts.Landlocked && n.dev.mnt.fd != nil {
		return unix.ESTALE
	}
	return err
}

// Release implements fuse.RawFileSystem.
func (fs *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	f := fs.files.remove(in.Fh)
	if f == nil {
		return
	}
	if f.writable() {
		defer fs.expectOn(f.n, notify.CloseWrite)()
	}
	if fs.opts.Backing != nil && f.n.is(rewritten|mapped) {
		fs.leaveWritten(f)
	} else {
		fs.leave(f.n)
	}
	f.fd.Release()
	f.n.dropLocksOf(in.Fh)
	f.n.wakeLockWaiters()
}

// Flush implements fuse.RawFileSystem: close(2) was called on one of the descriptors of a
// file. It ends the caller's POSIX locks, and reports what the host file system says at close.
func (fs *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if fs.opts.NoOpen {
		return fuse.ENOSYS
	}
	f := fs.files.get(in.Fh, nil)
	if f == nil {
		return fuse.EBADF
	}
	defer f.fd.Release()
	fs.dropLocks(f.n, in.LockOwner)
	if !f.writable() || f.n.dev.mute {
		return fuse.OK
	}
	dup, err := unix.FcntlInt(uintptr(f.fd.Int()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return status(err)
	}
	return status(unix.Close(dup))
}

// Fsync implements fuse.RawFileSystem.
func (fs *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	f, err := fs.file(in.NodeId, in.Fh, false)
	if err != nil {
		return status(err)
	}
	defer f.fd.Release()
	return status(syncFD(f.fd.Int(), in.FsyncFlags))
}

func syncFD(fd int, flags uint32) error {
	if flags&1 != 0 { // FUSE_FSYNC_FDATASYNC
		return unix.Fdatasync(fd)
	}
	return unix.Fsync(fd)
}

// Fallocate implements fuse.RawFileSystem.
func (fs *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if fs.opts.ReadOnly {
		return fuse.EROFS
	}
	f, err := fs.file(in.NodeId, in.Fh, true)
	if err != nil {
		return status(err)
	}
	defer f.fd.Release()
	defer fs.expectOn(f.n, notify.Modify)()
	return status(unix.Fallocate(f.fd.Int(), in.Mode, int64(in.Offset), int64(in.Length)))
}

// Lseek implements fuse.RawFileSystem; the kernel asks for SEEK_HOLE and SEEK_DATA only.
func (fs *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	f, err := fs.file(in.NodeId, in.Fh, false)
	if err != nil {
		return status(err)
	}
	defer f.fd.Release()
	off, err := unix.Seek(f.fd.Int(), int64(in.Offset), int(in.Whence))
	if err != nil {
		return status(err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

// Ioctl implements fuse.RawFileSystem. No ioctl of the host is for the guest.
func (fs *FS) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return fuse.Status(unix.ENOTTY)
}
