package fusedev

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// smallPayload is what most requests and answers need.
const smallPayload = 128 << 10

// entry is where the kernel puts a request and takes the answer from.
type entry struct {
	hand hand // its out is the header of the answer
	mem  []byte
	// headers is a struct fuse_uring_req_header.
	headers, payload []byte
	aside            []byte
	iov              [2]unix.Iovec
	// in and out are the request and the answer the way ProtocolServer wants them.
	in  [3][]byte
	out [2][]byte
}

func newEntry(size int) (*entry, error) {
	page := os.Getpagesize()
	size = (size + page - 1) / page * page
	// The payload is memory only as far as it is used.
	mem, err := unix.Mmap(-1, 0, page+size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mmap of a request's buffers: %w", err)
	}
	e := &entry{mem: mem, headers: mem[:headersSize], payload: mem[page:]}
	e.hand.out = e.headers[:outHeaderSize]
	e.out = [2][]byte{e.hand.out, e.payload}
	for i, b := range [][]byte{e.headers, e.payload} {
		e.iov[i].Base = unsafe.SliceData(b)
		e.iov[i].SetLen(len(b))
	}
	return e, nil
}

func (e *entry) free() { _ = unix.Munmap(e.mem) }

func (e *entry) word(at int) uint32 { return binary.NativeEndian.Uint32(e.headers[at:]) }

func (e *entry) opcode() uint32 { return e.word(4) }

func (e *entry) commitID() uint64 { return binary.NativeEndian.Uint64(e.headers[commitIDAt:]) }

// request looks at what the kernel has left.
func (e *entry) request() (op uint32, unique uint64) {
	// The kernel is trusted here as in a read of the device; the bounds are for mistakes of ours.
	size := min(int(e.word(payloadSizeAt)), len(e.payload))
	opIn := min(max(int(e.word(0))-inHeaderSize-size, 0), opInAt)
	op = e.opcode()
	payload := e.payload[:size]
	if op == opIoctl {
		// The only one that may read its data while it writes the answer's.
		e.aside = append(e.aside[:0], payload...)
		payload = e.aside
	}
	e.in = [3][]byte{e.headers[:inHeaderSize], e.headers[opInAt:][:opIn], payload}
	return op, binary.NativeEndian.Uint64(e.headers[8:])
}

// reply says how long the answer is, its header included.
func (e *entry) reply(size int) {
	binary.NativeEndian.PutUint32(e.headers[payloadSizeAt:], uint32(min(size-outHeaderSize, len(e.payload))))
}

// long reports whether the request is likely to take long.
func (e *entry) long() bool {
	switch e.opcode() {
	case opRead:
		return e.word(opInAt+readSizeAt-inHeaderSize) > inlineData
	case opWrite:
		return e.word(payloadSizeAt) > inlineWrite
	}
	return false
}
