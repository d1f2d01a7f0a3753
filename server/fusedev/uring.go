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
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/heraldfs/heraldfs/internal/sys"
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
	refused atomic.Bool   // the kernel did not take a worker
}

// reserve is how many free workers a queue shall have. All but the first have that many besides one at the beginning.
const reserve = 1

type queue struct {
	all      *queues
	id       uint16
	idle     atomic.Int64 // workers that wait for a request
	starting atomic.Int64 // and those that will
	busy     atomic.Int64
	answers  atomic.Int64
	tends    atomic.Int64
	used     atomic.Int64 // all of them, without those that wait for locks
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
	if err != nil {
		return nil, fmt.Errorf("FUSE over io_uring: %w", err)
	}
	q := &queues{c: c, size: max(c.opts.Fuse.MaxWrite, minData), begin: make(chan struct{})}
	first := &initialWorkers{made: make(chan error)}
	first.others.Add((cpus - 1) * (reserve + 1))
	for id := range cpus {
		queue := &queue{all: q, id: uint16(id)}
		workers := reserve + 1
		if id == 0 {
			workers = 1
		}
		for range workers {
			queue.start(first)
		}
	}
	for range (cpus-1)*(reserve+1) + 1 {
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
	if need := max(int(out.MaxWrite), int(out.MaxPages)*os.Getpagesize()); need > q.size {
		q.c.log.Warn("requests are read from the device: the buffers for FUSE over io_uring are too small", "have", q.size, "need", need)
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

// initialWorkers are those that every connection has.
type initialWorkers struct {
	made chan error // what came of each one's ring and entry
	// others are all but queue 0's. The kernel begins when every queue has an entry, and that one comes last.
	others sync.WaitGroup
}

// start starts a worker, which is one of the initial ones if initial is not nil.
func (q *queue) start(initial *initialWorkers) {
	q.used.Add(1)
	q.starting.Add(1)
	q.all.c.running.Go(func() {
		// The thread is of no use to anybody else afterwards: it has an affinity.
		if err := sys.OwnThread(func() error { return q.work(initial) }); err != nil {
			q.used.Add(-1)
			q.all.c.log.Error("FUSE over io_uring has a worker less", "cpu", q.id, "err", err)
		}
	})
}

func (q *queue) work(initial *initialWorkers) error {
	w, err := q.newWorker()
	if initial != nil {
		initial.made <- err
		if err != nil {
			return nil
		}
	}
	if err != nil {
		q.starting.Add(-1)
		return err
	}
	defer w.close()
	<-q.all.begin
	if !q.all.agreed {
		return nil
	}
	c := q.all.c
	c.hands.join(&w.entry.hand)
	defer c.hands.put(&w.entry.hand)

	cmd := uringCmd{opcode: opURingCmd, fd: int32(c.fd), qid: q.id,
		cmdOp: cmdRegister, addr: uint64(uintptr(unsafe.Pointer(&w.entry.iov[0]))), len: uint32(len(w.entry.iov))}
	if initial != nil && q.id == 0 {
		initial.others.Wait()
	}
	err = w.ring.submit(&cmd)
	q.idle.Add(1)
	q.starting.Add(-1)
	switch {
	case initial == nil:
		q.tend()
	case q.id != 0:
		initial.others.Done()
	}
	var res int32
	if err == nil {
		res, err = w.ring.wait()
	}
	for {
		idle := q.idle.Add(-1)
		if err == nil && res != 0 {
			err = unix.Errno(-res)
		}
		if err != nil {
			return q.ended(cmd.cmdOp, err)
		}
		if idle+q.starting.Load() < reserve && q.used.Load() < c.workers.Max {
			q.start(nil)
		}
		// What others wait beside may as well be done on another CPU.
		w.bind(!w.entry.long() || idle == q.used.Load()-1)
		q.busy.Add(1)
		q.answer(w.entry)
		cmd = uringCmd{opcode: opURingCmd, fd: int32(c.fd), qid: q.id, cmdOp: cmdCommitAndFetch, commitID: w.entry.commitID()}
		q.answers.Add(1)
		q.busy.Add(-1)
		q.idle.Add(1)
		res, err = w.ring.do(&cmd)
	}
}

// ended tells the end of the connection from a failure.
func (q *queue) ended(op uint32, err error) error {
	switch {
	case errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.ECANCELED), errors.Is(err, unix.ENODEV):
		return nil
	case op == cmdRegister:
		// The kernel goes on with the device if it was the first one.
		q.all.refused.Store(true)
		return fmt.Errorf("register: %w", err)
	}
	return fmt.Errorf("answer: %w", err)
}

// answer carries out the request in e and leaves the answer there.
func (q *queue) answer(e *entry) {
	c := q.all.c
	op, unique := e.request()
	c.requests.Add(op)
	wait := op == opSetLkw
	size, status := 0, fuse.Status(unix.ENOLCK)
	if !wait || c.locks.Take() {
		if wait {
			q.used.Add(-1)
		}
		e.hand.unique.Store(unique)
		size, status = c.protect(op, func() (int, fuse.Status) { return c.server.HandleRequest(e.in[:], e.out[:]) })
		e.hand.unique.Store(0)
		if wait {
			q.used.Add(1)
			c.locks.Free()
		}
	}
	if size == 0 {
		size = e.hand.errorReply(unique, status)
	}
	e.reply(size)
}
