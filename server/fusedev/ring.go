package fusedev

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Constants of include/uapi/linux/io_uring.h.
const (
	setupCoopTaskrun  = 1 << 8
	setupSQE128       = 1 << 10
	setupSingleIssuer = 1 << 12
	setupNoMmap       = 1 << 14 // Linux 6.5

	enterGetEvents = 1 << 0

	opURingCmd = 46
)

var errEnded = errors.New("the connection has ended")

// sqeSize is what IORING_SETUP_SQE128 makes of a submission queue entry, cqeSize a completion's.
const (
	sqeSize = 128
	cqeSize = 16
)

// ringParams is struct io_uring_params.
type ringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32

	sqHead, sqTail, sqMask, sqRingEntries, sqFlags, sqDropped, sqArray, _ uint32
	sqAddr                                                                uint64

	cqHead, cqTail, cqMask, cqRingEntries, cqOverflow, cqCQEs, cqFlags, _ uint32
	cqAddr                                                                uint64
}

// uringCmd is a struct io_uring_sqe of IORING_OP_URING_CMD whose command is a struct fuse_uring_cmd_req.
type uringCmd struct {
	opcode, flags uint8
	ioprio        uint16
	fd            int32
	cmdOp, _      uint32
	addr          uint64
	len           uint32
	_             uint32
	userData      uint64
	_             uint64

	cmdFlags, commitID uint64
	qid                uint16
	_                  [6]byte
}

// ring is an io_uring with one command under way at most. It belongs to the thread that made it.
type ring struct {
	fd   int
	mem  []byte // two pages
	sqes []byte // the second

	sqTail, sqMask *uint32
	cqHead, cqTail *uint32
	cqMask         *uint32
	cqes           uint32
	sqArray        uint32
}

// newRing makes a ring for the calling thread, which must be locked and must be the only one to use it.
//
// The queues are in our own memory, not in mappings of the ring: those would keep the ring, and with it the device, for as
// long as any thread has the process's memory, also one that cannot die before the device is closed. For the
// same reason it is not one of those rings whose work only their own thread does (IORING_SETUP_DEFER_TASKRUN): that of a
// thread that was killed would be left undone.
func newRing() (*ring, error) {
	const entries = 2
	page := os.Getpagesize()
	mem, err := unix.Mmap(-1, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("mmap of the rings: %w", err)
	}
	r := &ring{mem: mem, sqes: mem[page:]}
	p := ringParams{
		flags:  setupSQE128 | setupSingleIssuer | setupCoopTaskrun | setupNoMmap,
		cqAddr: uint64(uintptr(unsafe.Pointer(&r.mem[0]))), sqAddr: uint64(uintptr(unsafe.Pointer(&r.sqes[0]))),
	}
	fd, _, errno := syscall.Syscall(unix.SYS_IO_URING_SETUP, entries, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		_ = unix.Munmap(mem)
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r.fd = int(fd) // closed on exec, as every ring is
	r.sqTail, r.sqMask = r.word(p.sqTail), r.word(p.sqMask)
	r.cqHead, r.cqTail, r.cqMask = r.word(p.cqHead), r.word(p.cqTail), r.word(p.cqMask)
	r.cqes, r.sqArray = p.cqCQEs, p.sqArray
	return r, nil
}

func (r *ring) word(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.mem[off])) }

// put makes cmd the next to be submitted.
func (r *ring) put(cmd *uringCmd) {
	tail := *r.sqTail
	slot := tail & *r.sqMask
	sqe := r.sqes[slot*sqeSize:][:sqeSize]
	clear(sqe)
	*(*uringCmd)(unsafe.Pointer(&sqe[0])) = *cmd
	*r.word(r.sqArray + slot*4) = slot
	atomic.StoreUint32(r.sqTail, tail+1)
}

// submit submits cmd. The kernel has looked at it when submit returns, and wait has its result.
func (r *ring) submit(cmd *uringCmd) error {
	r.put(cmd)
	for {
		n, errno := r.enter(1, 0, 0)
		if n == 1 {
			return nil
		}
		if !again(errno) {
			return fmt.Errorf("io_uring_enter: %w", errno)
		}
	}
}

// do submits cmd and waits for its end by one system call, and returns its result. When it is interrupted it asks stop
// whether it shall go on.
func (r *ring) do(cmd *uringCmd, stop func() bool) (int32, error) {
	r.put(cmd)
	return r.finish(1, stop)
}

// wait returns the result of what was submitted.
func (r *ring) wait(stop func() bool) (int32, error) { return r.finish(0, stop) }

func (r *ring) finish(submit int, stop func() bool) (int32, error) {
	for {
		n, errno := r.enter(submit, 1, enterGetEvents)
		submit -= n
		if res, ok := r.result(); ok {
			return res, nil
		}
		switch {
		case !again(errno):
			return 0, fmt.Errorf("io_uring_enter: %w", errno)
		case stop():
			return 0, errEnded
		}
	}
}

// result returns the result of what was submitted, if there is one.
func (r *ring) result() (res int32, ok bool) {
	head := *r.cqHead
	if head == atomic.LoadUint32(r.cqTail) {
		return 0, false
	}
	// struct io_uring_cqe: user_data, res, flags
	res = *(*int32)(unsafe.Pointer(r.word(r.cqes + (head&*r.cqMask)*cqeSize + 8)))
	atomic.StoreUint32(r.cqHead, head+1)
	return res, true
}

// enter returns how many commands the kernel took.
func (r *ring) enter(submit, wait int, flags uintptr) (int, syscall.Errno) {
	n, _, errno := syscall.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(submit), uintptr(wait), flags, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func again(errno syscall.Errno) bool {
	return errno == 0 || errno == unix.EINTR || errno == unix.EAGAIN || errno == unix.EBUSY
}

func (r *ring) close() {
	unix.Close(r.fd)
	_ = unix.Munmap(r.mem) // the kernel holds the pages until it is done with them
}
