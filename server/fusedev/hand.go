package fusedev

import (
	"encoding/binary"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Opcodes of include/uapi/linux/fuse.h that the loop tells apart.
const (
	opForget        = 2
	opRead          = 15
	opWrite         = 16
	opFsync         = 20
	opInit          = 26
	opFsyncDir      = 30
	opSetLkw        = 33
	opInterrupt     = 36
	opIoctl         = 39
	opNotifyReply   = 41
	opBatchForget   = 42
	opFallocate     = 43
	opCopyFileRange = 47
	opSyncFS        = 50
	opCopyRange64   = 53
)

const (
	// headerRoom is what a request or a reply has besides its data; the kernel
	// asks for less than 100 bytes, go-fuse puts up to 288 before the data.
	headerRoom = 4096
	// minData lets the largest extended attribute through, whatever MaxWrite is.
	minData = 128 << 10
	// smallData is enough for a request that has neither data nor a long name.
	smallData = 1024
	// inlineData is the largest READ that the reader does itself: larger ones are of readahead, of which
	// several are under way at once. A WRITE is waited for, so handing it over only costs.
	inlineData  = 64 << 10
	inlineWrite = 256 << 10
	// maxIdle is how many unused hands with large buffers are kept.
	maxIdle = 4

	inHeaderSize  = 40
	outHeaderSize = 16
	// writeHeaderSize is fuse_in_header and fuse_write_in.
	writeHeaderSize = 80
	// readSizeAt is the offset of size in fuse_read_in, behind fh and offset.
	readSizeAt = inHeaderSize + 16
)

// hand is a request in the making: its buffers, and who it is.
type hand struct {
	in, out []byte
	// inv and outv hold in and out the way ProtocolServer wants them, so that
	// a call allocates nothing.
	inv, outv [1][]byte
	// unique is the request that a handler works on, or zero.
	unique atomic.Uint64
	small  bool
}

func newHand(in, out int) *hand {
	h := &hand{in: aligned(in, writeHeaderSize), out: aligned(out, outHeaderSize)}
	h.outv[0] = h.out
	return h
}

// aligned returns a buffer in which the byte at off begins a page: what the
// guest reads or writes with O_DIRECT may go on with O_DIRECT.
func aligned(size, off int) []byte {
	page := os.Getpagesize()
	b := make([]byte, size+page)
	skip := (page - (int(uintptr(unsafe.Pointer(&b[0])))+off)%page) % page
	return b[skip:][:size:size]
}

func (h *hand) opcode() uint32 { return binary.NativeEndian.Uint32(h.in[4:]) }
func (h *hand) id() uint64     { return binary.NativeEndian.Uint64(h.in[8:]) }

// class is what to do with a request.
type class uint8

const (
	inline class = iota
	initial
	blocking
	lockWait
)

// classify looks at the request of n bytes in h.
func (h *hand) classify(n int) class {
	switch h.opcode() {
	case opInit:
		return initial
	case opSetLkw:
		return lockWait
	case opFsync, opFsyncDir, opSyncFS, opFallocate, opCopyFileRange, opCopyRange64:
		return blocking
	case opWrite:
		if n > inlineWrite+headerRoom {
			return blocking
		}
	case opRead:
		if n >= readSizeAt+4 && binary.NativeEndian.Uint32(h.in[readSizeAt:]) > inlineData {
			return blocking
		}
	}
	return inline
}

// fitsSmall reports whether neither the request nor its reply needs a large buffer.
func (h *hand) fitsSmall(n int) bool {
	op := h.opcode()
	return n <= smallData && op != opRead && op != opWrite
}

// wantsReply is false for the requests that the kernel does not wait for.
func wantsReply(op uint32) bool {
	return op != opForget && op != opBatchForget && op != opInterrupt && op != opNotifyReply
}

// errorReply puts a reply without data into h.out.
//
//	struct fuse_out_header {
//		uint32_t	len;
//		int32_t		error;
//		uint64_t	unique;
//	};
func (h *hand) errorReply(unique uint64, status fuse.Status) int {
	binary.NativeEndian.PutUint32(h.out[0:], outHeaderSize)
	binary.NativeEndian.PutUint32(h.out[4:], uint32(-int32(status)))
	binary.NativeEndian.PutUint64(h.out[8:], unique)
	return outHeaderSize
}

// replied is the status in the reply.
func (h *hand) replied() fuse.Status {
	return fuse.Status(-int32(binary.NativeEndian.Uint32(h.out[4:])))
}

// handPool keeps hands for reuse and knows those in use.
type handPool struct {
	data int

	mu    sync.Mutex
	inUse map[*hand]struct{}
	large []*hand
	tiny  []*hand
}

func newHandPool(maxWrite int) *handPool {
	return &handPool{data: max(maxWrite, minData), inUse: make(map[*hand]struct{})}
}

func (p *handPool) get(small bool) *hand {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := &p.large
	if small {
		list = &p.tiny
	}
	var h *hand
	if n := len(*list); n > 0 {
		h = (*list)[n-1]
		*list = (*list)[:n-1]
	} else if small {
		h = newHand(smallData, smallData)
		h.small = true
	} else {
		h = newHand(p.data+headerRoom, p.data+headerRoom)
	}
	p.inUse[h] = struct{}{}
	return h
}

// join makes a hand of somebody else's known; put forgets it.
func (p *handPool) join(h *hand) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inUse[h] = struct{}{}
}

func (p *handPool) put(h *hand) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.inUse, h)
	switch {
	case h.in == nil: // joined
	case h.small && len(p.tiny) < maxIdle*16:
		p.tiny = append(p.tiny, h)
	case !h.small && len(p.large) < maxIdle:
		p.large = append(p.large, h)
	}
}

// uniques lists the requests that handlers work on.
func (p *handPool) uniques() []uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []uint64
	for h := range p.inUse {
		if id := h.unique.Load(); id != 0 {
			list = append(list, id)
		}
	}
	return list
}
