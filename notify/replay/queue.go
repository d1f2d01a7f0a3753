package replay

import (
	"context"
	"sync"
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

// queue carries events from the source's thread to the replayer's. It is bounded:
// when it is full, put blocks, and the kernel's own queue takes the rest.
type queue struct {
	mu      sync.Mutex
	ready   bell
	sleeps  bool // the replayer waits for the bell
	room    *sync.Cond
	limit   int
	events  []notify.Event
	found   []finding
	waiters []waiter
	idle    bool
	closed  bool
}

// waiter is told nil when everything put before it is done, or why that will not be.
type waiter chan error

func (w waiter) done(ctx context.Context) error {
	select {
	case err := <-w:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func tell(waiters []waiter, err error) {
	for _, w := range waiters {
		w <- err // has room
	}
}

func newQueue(limit int) (*queue, error) {
	b, err := newBell()
	if err != nil {
		return nil, err
	}
	q := &queue{limit: limit, ready: b}
	q.room = sync.NewCond(&q.mu)
	return q, nil
}

// wakeLocked rings if the replayer sleeps.
func (q *queue) wakeLocked() {
	if q.sleeps {
		q.sleeps = false
		q.ready.ring()
	}
}

// put appends copies of events and of what was found about them; drained says that the source has read
// its queue to the end.
func (q *queue) put(events []notify.Event, found []finding, drained bool) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.events) >= q.limit && !q.closed {
		q.room.Wait()
	}
	if q.closed {
		return notify.ErrClosed
	}
	for _, f := range found {
		f.at += len(q.events)
		q.found = append(q.found, f)
	}
	q.events = append(q.events, events...)
	if len(events) > 0 {
		q.idle = false
	}
	q.idle = q.idle || drained
	q.wakeLocked()
	return nil
}

// wait registers somebody who waits until everything put so far is done.
func (q *queue) wait() (waiter, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, notify.ErrClosed
	}
	w := make(waiter, 1)
	q.waiters = append(q.waiters, w)
	q.wakeLocked()
	return w, nil
}

type taken struct {
	events  []notify.Event
	found   []finding
	waiters []waiter
	// idle says that the source had nothing more when the last event was put.
	idle bool
}

// take swaps the queue's content for spare, waiting for something to come or for
// timeout to pass if it is not zero. It returns false when the queue is closed.
func (q *queue) take(spare []notify.Event, timeout time.Duration) (taken, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for waited := false; len(q.events) == 0 && len(q.waiters) == 0 && !q.idle && !q.closed; waited = true {
		if waited && timeout > 0 {
			break
		}
		q.sleeps = true
		q.mu.Unlock()
		q.ready.wait(timeout)
		q.mu.Lock()
		q.sleeps = false
	}
	if q.closed {
		q.disappointLocked()
		return taken{}, false
	}
	t := taken{q.events, q.found, q.waiters, q.idle}
	q.events, q.found, q.waiters, q.idle = spare[:0], nil, nil, false
	q.room.Broadcast()
	return t, true
}

func (q *queue) disappointLocked() {
	tell(q.waiters, notify.ErrClosed)
	q.waiters = nil
}

// abandon closes the queue for want of somebody who takes from it.
func (q *queue) abandon() {
	q.close()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.disappointLocked()
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.events)
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.closed = true
	q.wakeLocked()
	q.room.Broadcast()
}
