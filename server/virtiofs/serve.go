package virtiofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Opcodes of include/uapi/linux/fuse.h that are told apart here.
const (
	opForget        = 2
	opRead          = 15
	opWrite         = 16
	opFsync         = 20
	opSetxattr      = 21
	opFlush         = 25
	opInit          = 26
	opFsyncDir      = 30
	opSetLkw        = 33
	opInterrupt     = 36
	opDestroy       = 38
	opNotifyReply   = 41
	opBatchForget   = 42
	opFallocate     = 43
	opCopyFileRange = 47
	opSyncFS        = 50
	opCopyRange64   = 53
)

const (
	inHeaderSize  = 40
	outHeaderSize = 16
	// writeHeaderSize is fuse_in_header and fuse_write_in.
	writeHeaderSize = inHeaderSize + 40
	// maxCopied bounds a request other than WRITE: the largest holds a name and an
	// extended attribute of 64 KiB, or a page of forgets.
	maxCopied = 128 << 10
	// inlineData is the largest READ or WRITE that the queue's goroutine does itself.
	inlineData = 64 << 10
	// smallReply is the size of the buffers that are kept for replies.
	smallReply = 8 << 10
)

// fixedSize is the part of a request between its header and its names or data, in the oldest form that
// is still served. go-fuse writes to the process's log where it is missing.
var fixedSize = [...]uint8{
	1: 0, opForget: 8, 3: 16, 4: 88, 8: 16, 9: 8, 12: 8, 13: 8, 14: 8, opRead: 40, opWrite: 40,
	18: 24, opFsync: 16, opSetxattr: 8, 22: 8, 23: 8, opFlush: 24, opInit: 16, 27: 8, 28: 40, 29: 24, opFsyncDir: 16,
	31: 48, 32: 48, opSetLkw: 48, 34: 8, 35: 16, opInterrupt: 8, 37: 16, 39: 32, 40: 24, opNotifyReply: 40,
	opBatchForget: 8, opFallocate: 32, 44: 40, 45: 16, 46: 24, opCopyFileRange: 56, opSyncFS: 8, 51: 16, 52: 24, opCopyRange64: 56,
}

// fixedSize is at least what go-fuse expects in this session.
func (s *session) fixedSize(opcode uint32) int {
	switch {
	case int(opcode) >= len(fixedSize):
		return 0
	case opcode == opSetxattr && s != nil && s.setxattrExt:
		return 16
	}
	return int(fixedSize[opcode])
}

// header is a private copy of what every request begins with.
type header struct {
	opcode uint32
	unique uint64
}

func (c *chain) readHeader() (h header, err error) {
	if c.inLen < inHeaderSize {
		return h, fmt.Errorf("%w: request of %d bytes", ErrGuest, c.inLen)
	}
	b := gather(c.in, 0, 16)
	return header{binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint64(b[8:])}, nil
}

// blocks reports whether the request is known to take long, or waits for others.
func (r *request) blocks() bool {
	if r.inLen > inlineData || r.outLen > inlineData+smallReply {
		return true
	}
	switch r.opcode {
	case opFsync, opFsyncDir, opFlush, opSyncFS, opFallocate, opCopyFileRange, opCopyRange64, opInit, opDestroy:
		return true
	}
	return false
}

// serve carries out r and gives it back to the guest.
func (d *device) serve(r *request) {
	defer r.done()
	defer r.q.catch()
	n, err := d.answer(r)
	if err != nil {
		d.fail(r.q.index, err)
		return
	}
	r.q.push(r, n)
}

// answer returns the number of bytes written to r.out. An error breaks the device.
func (d *device) answer(r *request) (int, error) {
	h := r.header
	d.requests.Add(h.opcode)
	if r.inLen < inHeaderSize+d.session().fixedSize(h.opcode) {
		return r.refuse(h, unix.EINVAL), nil
	}
	switch h.opcode {
	case opSetLkw:
		if !r.beside {
			return r.refuse(h, unix.ENOLCK), nil
		}
	case opNotifyReply:
		// We never ask for one.
		return 0, nil
	case opInit:
		return d.init(r, h), nil
	case opDestroy:
		return d.destroy(r, h), nil
	}
	s := d.session()
	if !s.enter(r, h.unique) {
		return r.refuse(h, unix.ENOTCONN), nil
	}
	defer s.leave(r)
	return d.call(s, r, h)
}

// The FUSE protocol versions that go-fuse serves. It writes to the process's log about others.
const (
	fuseMajor    = 7
	fuseMinMinor = 12
)

// init begins a session. The one before it ends first: the guest was reset.
func (d *device) init(r *request, h header) int {
	version := gather(r.in, inHeaderSize, 8)
	if major := binary.LittleEndian.Uint32(version); major != fuseMajor || binary.LittleEndian.Uint32(version[4:]) < fuseMinMinor {
		return r.refuse(h, unix.EPROTO)
	}
	d.mountMu.Lock()
	defer d.mountMu.Unlock()
	d.swapSession(nil).end()
	s, err := newSession(d.newFS, Guest{InitFlags: r.initFlags(), Memory: d.memSize.Load}, d.log)
	if err != nil {
		d.log.Error("a guest's mount failed", "err", err)
		return r.refuse(h, unix.EIO)
	}
	s.enter(r, h.unique)
	n, err := d.call(s, r, h)
	s.leave(r)
	// fuse_init_out: major, minor and max_readahead come before flags.
	if b := gather(r.out, outHeaderSize+12, 4); len(b) == 4 {
		s.setxattrExt = binary.LittleEndian.Uint32(b)&fuse.CAP_SETXATTR_EXT != 0
	}
	if err != nil || !r.replied(n) {
		s.end()
		return n
	}
	d.swapSession(s)
	return n
}

// initFlags reads what the kernel offers:
//
//	struct fuse_init_in { uint32_t major, minor, max_readahead, flags, flags2; uint32_t unused[11]; };
//
// Older kernels send no flags2.
func (r *request) initFlags() uint64 {
	var b [8]byte
	copy(b[:], gather(r.in, inHeaderSize+12, 8))
	flags := binary.LittleEndian.Uint64(b[:])
	if flags&fuse.CAP_INIT_EXT == 0 {
		flags = uint64(uint32(flags))
	}
	return flags
}

// replied reports whether the n bytes written to r.out are a reply without an error.
func (r *request) replied(n int) bool {
	b := gather(r.out, 0, outHeaderSize)
	return n >= outHeaderSize && len(b) == outHeaderSize && binary.LittleEndian.Uint32(b[4:]) == 0
}

func (d *device) destroy(r *request, h header) int {
	d.mountMu.Lock()
	defer d.mountMu.Unlock()
	d.swapSession(nil).end()
	return r.reply(outHeader(h.unique, 0))
}

// call has the file system answer r. Everything but the data of READ and WRITE
// goes through memory of ours: what was checked is what is used.
func (d *device) call(s *session, r *request, h header) (n int, err error) {
	var in [][]byte
	out := r.out
	var private []byte
	if h.opcode == opWrite {
		in = append([][]byte{gather(r.in, 0, writeHeaderSize)}, tail(r.in, writeHeaderSize)...)
	} else {
		if r.inLen > maxCopied {
			return r.refuse(h, unix.E2BIG), nil
		}
		in = [][]byte{gather(r.in, 0, r.inLen)}
	}
	if h.opcode != opRead {
		if r.outLen <= smallReply {
			buf := d.buffers.Get().(*[smallReply]byte)
			defer d.buffers.Put(buf)
			private = buf[:r.outLen]
		} else {
			private = make([]byte, r.outLen)
		}
		out = [][]byte{private}
	}
	n, status := d.handle(s, in, out, h.opcode)
	if n == 0 && !status.Ok() {
		return r.refuse(h, unix.Errno(status)), nil
	}
	if n < 0 || n > r.outLen {
		return 0, fmt.Errorf("reply of %d bytes in %d", n, r.outLen)
	}
	if private != nil {
		n = scatter(r.out, private[:n])
	}
	return n, nil
}

// handle keeps a panic that go-fuse does not catch, as in a ReadResult, from ending more than the request.
func (d *device) handle(s *session, in, out [][]byte, opcode uint32) (n int, status fuse.Status) {
	defer func() {
		if v := recover(); v != nil {
			d.log.Error("panic in a request handler", "opcode", opcode, "panic", v, "stack", string(debug.Stack()))
			n, status = 0, fuse.EIO
		}
	}()
	return s.server.HandleRequest(in, out)
}

// outHeader is fuse_out_header: len u32, error s32, unique u64.
func outHeader(unique uint64, errno unix.Errno) []byte {
	b := make([]byte, 0, outHeaderSize)
	b = binary.LittleEndian.AppendUint32(b, outHeaderSize)
	b = binary.LittleEndian.AppendUint32(b, uint32(-int32(errno)))
	return binary.LittleEndian.AppendUint64(b, unique)
}

// refuse answers with an error, if the guest waits for an answer and left room for one.
func (r *request) refuse(h header, errno unix.Errno) int {
	switch h.opcode {
	case opForget, opBatchForget, opInterrupt, opNotifyReply:
		return 0
	}
	return r.reply(outHeader(h.unique, errno))
}

func (r *request) reply(b []byte) int {
	if r.outLen < len(b) {
		return 0
	}
	return scatter(r.out, b)
}

// faultError is the error for a recovered panic in code that touches shared memory.
func faultError(v any) error {
	if err, ok := v.(error); ok {
		var fault interface{ Addr() uintptr }
		if errors.As(err, &fault) {
			return fmt.Errorf("%w: fault at %#x", ErrMemory, fault.Addr())
		}
	}
	return fmt.Errorf("%w: panic: %v", ErrMemory, v)
}

// guard runs f, which touches shared memory, and returns a fault in it as an error.
func guard(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if v := recover(); v != nil {
			err = faultError(v)
		}
	}()
	return f()
}
