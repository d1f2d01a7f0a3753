package fusedev

import (
	"fmt"
	"golang.org/x/sys/unix"
)

// worker is what a thread of a queue has.
type worker struct {
	ring      *ring
	entry     *entry
	all, mine unix.CPUSet
	bound     bool
}

// newWorker makes a worker for the calling thread.
func (q *queue) newWorker() (*worker, error) {
	w := new(worker)
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

// bind has the thread run on its queue's CPU or on any. A CPU that is offline or not ours cannot be had.
func (w *worker) bind(bound bool) {
	if bound == w.bound {
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
