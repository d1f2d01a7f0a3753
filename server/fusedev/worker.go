package fusedev

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// worker is what a thread of a queue has.
type worker struct {
	queue     *queue
	ring      *ring
	entry     *entry
	all, mine unix.CPUSet
	bound     bool
	large     bool // the entry's payload is memory, perhaps up to its end
	begun     bool // the first request is there already
}

// newWorker makes a worker for the calling thread.
func (q *queue) newWorker() (*worker, error) {
	w := &worker{queue: q}
	w.mine.Set(int(q.id))
	if err := unix.SchedGetaffinity(0, &w.all); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	var err error
	if w.ring, err = newRing(); err != nil {
		return nil, err
	}
	if w.entry, err = newEntry(q.all.size); err != nil {
		w.ring.close()
		return nil, err
	}
	return w, nil
}

// command is what the worker asks of the kernel.
func (w *worker) command(op uint32, commitID uint64) *uringCmd {
	cmd := &uringCmd{opcode: opURingCmd, fd: int32(w.queue.all.c.fd), qid: w.queue.id, cmdOp: op, commitID: commitID}
	if op == cmdRegister {
		cmd.addr, cmd.len = uint64(uintptr(unsafe.Pointer(&w.entry.iov[0]))), uint32(len(w.entry.iov))
	}
	return cmd
}

// next gives the answer in e to the kernel, if e is not nil, and returns when the next request is there. errEnded: the
// connection has ended.
func (w *worker) next(e *entry) error {
	c := w.queue.all.c
	var res int32
	var err error
	switch {
	case e != nil:
		res, err = w.ring.do(w.command(cmdCommitAndFetch, e.commitID()), c.ending)
	case !w.begun:
		res, err = w.ring.wait(c.ending)
	}
	runtime.KeepAlive(w)
	if err == nil && res != 0 {
		err = unix.Errno(-res)
	}
	if err != nil && (errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) || !c.alive()) {
		return errEnded
	}
	return err
}

// tidy gives back memory that large requests have used, and notes whether the one at hand is.
func (w *worker) tidy(back, large bool) {
	if back && w.large {
		_ = unix.Madvise(w.entry.payload[smallPayload:], unix.MADV_DONTNEED)
		w.large = false
	}
	w.large = w.large || large
}

// bind has the thread run on its queue's CPU, if we may run there, or on any of ours.
func (w *worker) bind(bound bool) {
	if bound == w.bound || !w.all.IsSet(int(w.queue.id)) {
		return
	}
	w.bound = bound
	set := &w.all
	if bound {
		set = &w.mine
	}
	_ = unix.SchedSetaffinity(0, set)
}

func (w *worker) close() {
	w.ring.close()
	w.entry.free()
}
