package passthrough

import (
	"bytes"
	"encoding/binary"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
)

const (
	direntBuf  = 32 << 10
	maxStreams = 64
	// maxBuffered is how many open directories may keep what was read ahead of them.
	maxBuffered = 256
)

// stream reads a directory. Offsets are the host's, so a stream can be left, closed and
// found again by offset.
type stream struct {
	n  *node
	fd *sys.FD

	mu  sync.Mutex
	buf []byte
	// rest is what getdents64 returned and nobody has taken; at is the offset of its first entry.
	rest []byte
	at   uint64

	refs int    // guarded by streamCache.mu
	tick uint64 // guarded by streamCache.mu
}

// dirent is one entry of getdents64(2).
type dirent struct {
	ino  uint64
	off  uint64 // of the next entry
	typ  uint8
	name []byte // valid until the next read
}

func (fs *FS) openStream(n *node) (*stream, error) {
	fd, err := fs.ref(n)
	if err != nil {
		return nil, gone(err)
	}
	defer fd.Release()
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	open := func() (int, error) { return unix.Openat(fd.Int(), ".", flags, 0) }
	raw, err := sys.Retry(open)
	if err == unix.EMFILE || err == unix.ENFILE {
		fs.ring.shrink()
		raw, err = sys.Retry(open)
	}
	if err != nil {
		return nil, err
	}
	return &stream{n: n, fd: sys.NewFD(raw)}, nil
}

// each calls emit with the entries from offset on until it returns false or there
// are no more; end says which.
func (s *stream) each(offset uint64, emit func(*dirent) bool) (end bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if offset == 0 || offset != s.at || s.buf == nil {
		if _, err := unix.Seek(s.fd.Int(), int64(offset), unix.SEEK_SET); err != nil {
			return false, err
		}
		s.rest, s.at = nil, offset
	}
	if s.buf == nil {
		s.buf = make([]byte, direntBuf)
	}
	for {
		if len(s.rest) == 0 {
			n, err := sys.Retry(func() (int, error) { return unix.Getdents(s.fd.Int(), s.buf) })
			if err != nil {
				return false, err
			}
			if n == 0 {
				return true, nil
			}
			s.rest = s.buf[:n]
		}
		d, size := parseDirent(s.rest)
		if size == 0 {
			return false, unix.EIO
		}
		if !emit(&d) {
			return false, nil
		}
		s.rest, s.at = s.rest[size:], d.off
	}
}

// dropBuffer frees memory; what comes next is read again.
func (s *stream) dropBuffer() {
	s.mu.Lock()
	s.buf, s.rest = nil, nil
	s.mu.Unlock()
}

// parseDirent reads
//
//	struct linux_dirent64 { u64 d_ino; s64 d_off; u16 d_reclen; u8 d_type; char d_name[]; }
func parseDirent(b []byte) (d dirent, size int) {
	const header = 19
	if len(b) < header {
		return d, 0
	}
	size = int(binary.NativeEndian.Uint16(b[16:]))
	if size < header || size > len(b) {
		return d, 0
	}
	d = dirent{ino: binary.NativeEndian.Uint64(b), off: binary.NativeEndian.Uint64(b[8:]), typ: b[18], name: b[header:size]}
	if i := bytes.IndexByte(d.name, 0); i >= 0 {
		d.name = d.name[:i]
	}
	return d, size
}

// streamCache keeps streams of directories that the kernel reads without opening them.
type streamCache struct {
	mu   sync.Mutex
	all  []*stream
	tick uint64
}

// stream returns a stream for a request; done gives it back.
func (fs *FS) stream(in *fuse.ReadIn) (s *stream, done func(end bool), err error) {
	n, err := fs.node(in.NodeId)
	if err != nil {
		return nil, nil, err
	}
	if in.Fh != 0 {
		fs.files.mu.RLock()
		s := fs.files.dirs[in.Fh]
		fs.files.mu.RUnlock()
		if s == nil || s.n != n || !s.fd.Acquire() {
			return nil, nil, unix.EBADF
		}
		return s, func(bool) { s.fd.Release() }, nil
	}
	c := &fs.streams
	if s = c.take(n); s == nil {
		if s, err = fs.openStream(n); err != nil {
			return nil, nil, err
		}
		s.refs = 1
		c.put(s)
	}
	return s, func(end bool) { c.done(s, end) }, nil
}

func (c *streamCache) take(n *node) *stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.all {
		if s.n == n {
			s.refs++
			c.tick++
			s.tick = c.tick
			return s
		}
	}
	return nil
}

// put adds s. If all are in use the cache is over its bound for as long as they are.
func (c *streamCache) put(s *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick++
	s.tick = c.tick
	c.all = append(c.all, s)
	for len(c.all) > maxStreams {
		old := -1
		for i, o := range c.all {
			if o.refs == 0 && (old < 0 || o.tick < c.all[old].tick) {
				old = i
			}
		}
		if old < 0 {
			return
		}
		c.removeLocked(old)
	}
}

func (c *streamCache) removeLocked(i int) {
	s := c.all[i]
	last := len(c.all) - 1
	c.all[i], c.all[last] = c.all[last], nil
	c.all = c.all[:last]
	s.fd.Release()
}

// done gives s back. A stream that was read to its end is closed when nobody else reads it.
func (c *streamCache) done(s *stream, end bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.refs--
	if s.refs > 0 || !(end || len(c.all) > maxStreams) {
		return
	}
	for i, o := range c.all {
		if o == s {
			c.removeLocked(i)
			return
		}
	}
}

// drop closes n's stream, because n is forgotten.
func (c *streamCache) drop(n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, s := range c.all {
		if s.n == n && s.refs == 0 {
			c.removeLocked(i)
			return
		}
	}
}

func (c *streamCache) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.all) > 0 {
		c.removeLocked(0)
	}
}

// OpenDir implements fuse.RawFileSystem.
func (fs *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if fs.opts.NoOpendir {
		return fuse.ENOSYS
	}
	n, err := fs.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	s, err := fs.openStream(n)
	if err != nil {
		return status(err)
	}
	t := &fs.files
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	t.dirs[t.last] = s
	out.Fh = t.last
	if fs.opts.KeepCache {
		out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	}
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (fs *FS) ReleaseDir(in *fuse.ReleaseIn) {
	t := &fs.files
	t.mu.Lock()
	s := t.dirs[in.Fh]
	delete(t.dirs, in.Fh)
	t.mu.Unlock()
	if s != nil {
		s.fd.Release()
	}
}

// FsyncDir implements fuse.RawFileSystem.
func (fs *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	s, done, err := fs.stream(&fuse.ReadIn{InHeader: in.InHeader, Fh: in.Fh})
	if err != nil {
		return status(err)
	}
	defer done(false)
	return status(syncFD(s.fd.Int(), in.FsyncFlags))
}

// ReadDir implements fuse.RawFileSystem.
func (fs *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.readDir(in, func(s *stream, d *dirent) bool {
		return out.AddDirEntry(s.entry(d))
	})
}

// ReadDirPlus implements fuse.RawFileSystem.
func (fs *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.readDir(in, func(s *stream, d *dirent) bool {
		e := s.entry(d)
		child := out.AddDirLookupEntry(e)
		if child == nil {
			return false
		}
		if !validName(e.Name) {
			return true
		}
		// An entry that cannot be looked up is listed without attributes; who asks for them hears why.
		if err := fs.lookup(s.n, s.fd.Int(), e.Name, child); err != nil {
			*child = fuse.EntryOut{}
			return true
		}
		if fs.opts.Observer != nil {
			fs.opts.Observer.Entry(s.n.id, e.Name, child)
		}
		return true
	})
}

func (fs *FS) readDir(in *fuse.ReadIn, add func(*stream, *dirent) bool) fuse.Status {
	s, done, err := fs.stream(in)
	if err != nil {
		return status(err)
	}
	end, err := s.each(in.Offset, func(d *dirent) bool { return add(s, d) })
	if fs.files.openDirs() > maxBuffered {
		s.dropBuffer()
	}
	done(end)
	return status(err)
}

// entry is d as the guest sees it. The root's ".." is the root.
func (s *stream) entry(d *dirent) fuse.DirEntry {
	ino := s.n.ino(d.ino)
	if s.n.id == rootID && string(d.name) == ".." {
		ino = fuse.FUSE_UNKNOWN_INO
	}
	return fuse.DirEntry{Name: string(d.name), Ino: ino, Off: d.off, Mode: uint32(d.typ) << 12}
}
