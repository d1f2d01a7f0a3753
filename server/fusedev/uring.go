package fusedev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// IOURing says whether requests come by FUSE over io_uring.
type IOURing uint8

const (
	// IOURingAuto takes it where kernel and system offer it.
	IOURingAuto IOURing = iota
	// IOURingOff never does.
	IOURingOff
	// IOURingOn makes Mount fail where it is not offered.
	IOURingOn
)

// enableParameter is the switch of the kernel's fuse module.
const enableParameter = "/sys/module/fuse/parameters/enable_uring"

// Constants and offsets of include/uapi/linux/fuse.h.
const (
	flagInitExt   = 1 << 30
	flagOverURing = 1 << (41 - 32) // in flags2

	cmdRegister       = 1
	cmdCommitAndFetch = 2

	// struct fuse_uring_req_header: the headers, then struct fuse_uring_ent_in_out.
	opInAt        = 128
	commitIDAt    = 256 + 8
	payloadSizeAt = 256 + 16
	headersSize   = 288
)

var errNotSupported = errors.New("not supported by this kernel")

// maxQueues is how many CPUs a machine can have for us to have threads for each.
const maxQueues = 256

// leastPayload is what an entry has to hold for the largest extended attribute, its name and a header. The kernel
// takes its size from what was agreed on, not from what we have.
const leastPayload = 65<<10 + 512

// queues are the request queues of FUSE over io_uring: one for each CPU that the machine can have. The kernel puts a request
// into the queue of the CPU that its caller runs on.
//
// A worker is a thread with a ring and one entry, which is a request's buffers in our memory. It answers a request and fetches
// the next by one system call. The kernel gives a request to the entry that became free last, so while requests come one after
// the other one worker of a queue has them all, and it is bound to the CPU: neither it nor the caller has to be woken
// on another one. Further workers start when fewer than reserve are free, so that a slow request holds up nobody.
type queues struct {
	c       *Conn
	size    int // of an entry's payload
	once    sync.Once
	begin   chan struct{} // closed when INIT is answered, or never will be
	agreed  bool          // valid then
	refused atomic.Bool   // the kernel did not take one of the first workers
	failed  atomic.Bool   // a failure of a later one was logged

	mu      sync.Mutex
	threads map[int]struct{}
}

// possibleCPUs is how many CPUs the machine can have, which is one more than the highest number.
func possibleCPUs() (int, error) {
	const path = "/sys/devices/system/cpu/possible"
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	first, last, found := strings.Cut(strings.TrimSpace(string(b)), "-")
	if !found {
		last = first
	}
	n, err := strconv.Atoi(last)
	if err != nil || first != "0" || n >= 1<<16 {
		return 0, fmt.Errorf("%s: %q is not a range from 0", path, b)
	}
	return n + 1, nil
}

// IOURingOffered returns why FUSE over io_uring cannot be had, as far as can be told before mounting.
func IOURingOffered() error {
	b, err := os.ReadFile(enableParameter)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("FUSE over io_uring: %w (it needs Linux 6.14 with CONFIG_FUSE_IO_URING)", errNotSupported)
	}
	if err != nil {
		return fmt.Errorf("FUSE over io_uring: %w", err)
	}
	if strings.TrimSpace(string(b)) != "Y" {
		return fmt.Errorf("FUSE over io_uring is switched off (to switch it on, as root: echo Y > %s)", enableParameter)
	}
	return nil
}

// newQueues makes what can fail: once INIT is answered, the kernel holds requests back until every queue has an entry.
func (c *Conn) newQueues() (*queues, error) {
	if err := IOURingOffered(); err != nil {
		return nil, err
	}
	cpus, err := possibleCPUs()
	if err == nil && cpus > maxQueues {
		err = fmt.Errorf("this machine can have %d CPUs; at most %d can have queues", cpus, maxQueues)
	}
	var ours unix.CPUSet
	if err == nil {
		err = unix.SchedGetaffinity(0, &ours)
	}
	if err != nil {
		return nil, fmt.Errorf("FUSE over io_uring: %w", err)
	}
	q := &queues{c: c, size: max(c.opts.Fuse.MaxWrite, minData), begin: make(chan struct{}), threads: make(map[int]struct{})}
	first := &firstWorkers{made: make(chan error)}
	n := 0
	for id := range cpus {
		queue := &queue{all: q, id: uint16(id)}
		workers := 1
		// Queue 0's would come too late, and on a CPU that is offline or not ours there will hardly be anybody.
		if id > 0 && ours.IsSet(id) {
			workers += reserve
		}
		if id > 0 {
			first.others.Add(workers)
		}
		n += workers
		for range workers {
			queue.start(first)
		}
	}
	for range n {
		err = errors.Join(err, <-first.made)
	}
	if err != nil {
		q.open(false)
		c.running.Wait()
		return nil, fmt.Errorf("FUSE over io_uring: %w", err)
	}
	return q, nil
}

// settle looks at INIT and its answer, adds to it what is ours, and reports whether kernel and server have agreed.
func (q *queues) settle(in []byte, out *fuse.InitOut) bool {
	const flags2At = inHeaderSize + 16
	if len(in) < flags2At+4 || binary.NativeEndian.Uint32(in[flags2At:])&flagOverURing == 0 {
		return false
	}
	if need := max(int(out.MaxWrite), int(out.MaxPages)*os.Getpagesize()); need > q.size || need < leastPayload {
		q.c.log.Warn("requests are read from the device: their size does not suit FUSE over io_uring", "size", need, "least", leastPayload, "most", q.size)
		return false
	}
	out.Flags |= flagInitExt
	out.Flags2 |= flagOverURing
	return true
}

// open lets the workers go on, and end if nothing was agreed. Only the first call counts.
func (q *queues) open(agreed bool) {
	q.once.Do(func() {
		q.agreed = agreed
		close(q.begin)
	})
}

// active reports whether requests come this way. It waits until that is settled.
func (q *queues) active() bool {
	<-q.begin
	return q.agreed && !q.refused.Load()
}

// wake has workers look whether the connection has ended, should the kernel not tell them.
func (q *queues) wake() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for tid := range q.threads {
		// The runtime's own signal for that: it interrupts a system call and does nothing else.
		_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
	}
}

// thread makes the calling thread known to wake, until gone is called.
func (q *queues) thread() (gone func()) {
	tid := unix.Gettid()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.threads[tid] = struct{}{}
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.threads, tid)
	}
}
