package fusedev

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/heraldfs/heraldfs/internal/sys"
	"golang.org/x/sys/unix"
)

// reserve is how many free workers a queue shall have.
const reserve = 1

type queue struct {
	all      *queues
	id       uint16
	idle     atomic.Int64 // workers that wait for a request
	starting atomic.Int64 // and those that will
	busy     atomic.Int64
	answers  atomic.Int64
	tending  tending
}

// firstWorkers are those that every connection has.
type firstWorkers struct {
	made chan error // what came of each one's ring and entry
	// others are all but queue 0's. The kernel begins when every queue has an entry, and that one comes last.
	others sync.WaitGroup
	failed atomic.Bool
}

// more starts another worker, if there may be one.
func (q *queue) more() {
	if q.all.c.workers.Take() {
		q.start(nil)
	}
}

// start starts a worker, which is one of the first if first is not nil.
func (q *queue) start(first *firstWorkers) {
	q.starting.Add(1)
	q.all.c.running.Go(func() {
		// The thread is of no use to anybody else afterwards: it has an affinity.
		err := sys.OwnThread(func() error { return q.work(first) })
		if err == nil || q.all.c.ending() {
			return
		}
		if !q.all.failed.Swap(true) {
			q.all.c.log.Error("FUSE over io_uring has a worker less", "cpu", q.id, "err", err)
		}
		if first == nil {
			q.all.c.workers.Free()
		}
		q.tend()
	})
}

// work is a worker's life. It returns an error if that should have been longer.
func (q *queue) work(first *firstWorkers) error {
	w, err := q.newWorker()
	if first != nil {
		first.made <- err
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
	defer q.all.thread()()
	c.hands.join(&w.entry.hand)
	defer c.hands.put(&w.entry.hand)

	if err := w.register(first); err != nil {
		q.starting.Add(-1)
		if !c.alive() {
			return nil
		}
		return err
	}
	q.idle.Add(1)
	q.starting.Add(-1)
	if first == nil {
		q.tend()
	}
	for err = w.next(nil); ; {
		idle := q.idle.Add(-1)
		if errors.Is(err, errEnded) {
			return nil
		}
		if err != nil {
			return err
		}
		busy := q.busy.Add(1)
		wait := w.entry.opcode() == opSetLkw
		if wait {
			// Who waits for a lock does not count, because what ends the waiting may be a later request.
			c.workers.Free()
		}
		if idle+q.starting.Load() < reserve {
			q.more()
		}
		long := w.entry.long()
		w.tidy(first == nil && !long, long)
		// What others wait beside may as well be done on another CPU.
		w.bind(!long || busy == 1)
		q.answer(w.entry, wait)
		if wait {
			c.workers.Hold()
		}
		q.answers.Add(1)
		q.busy.Add(-1)
		q.idle.Add(1)
		err = w.next(w.entry)
	}
}

// register makes the worker's entry known to the kernel.
func (w *worker) register(first *firstWorkers) error {
	others := first != nil && w.queue.id != 0
	if first != nil && !others {
		if first.others.Wait(); first.failed.Load() {
			// The kernel has given up, and would begin only half.
			return errors.New("register: others have failed")
		}
	}
	err := w.ring.submit(w.command(cmdRegister, 0))
	if res, ended := w.ring.result(); err == nil && ended {
		err = unix.Errno(-res)
		if res == 0 {
			err = nil
			w.begun = true
		}
	}
	if err != nil && first != nil {
		// The kernel goes on with the device.
		first.failed.Store(true)
		w.queue.all.refused.Store(true)
	}
	if others {
		first.others.Done()
	}
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	return nil
}

// answer carries out the request in e and leaves the answer there. wait says that it may have to wait for a lock.
func (q *queue) answer(e *entry, wait bool) {
	c := q.all.c
	op, unique := e.request()
	c.requests.Add(op)
	size, status := 0, fuse.Status(unix.ENOLCK)
	if !wait || c.locks.Take() {
		e.hand.unique.Store(unique)
		size, status = c.protect(op, func() (int, fuse.Status) { return c.server.HandleRequest(e.in[:], e.out[:]) })
		e.hand.unique.Store(0)
		if wait {
			c.locks.Free()
		}
	}
	if size == 0 {
		size = e.hand.errorReply(unique, status)
	}
	e.reply(size)
}
