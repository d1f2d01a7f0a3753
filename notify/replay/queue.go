package replay

import (
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
	waiters []chan struct{}
	idle    bool
	closed  bool
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

// put appends copies of events; drained says that the source has read its queue to the end.
func (q *queue) put(events []notify.Event, drained bool) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.events) >= q.limit && !q.closed {
		q.room.Wait()
	}
	if q.closed {
		return notify.ErrClosed
	}
	q.events = append(q.events, events...)
	if len(events) > 0 {
		q.idle = false
	}
	q.idle = q.idle || drained
	q.wakeLocked()
	return nil
}

// wait registers a channel that is closed when everything put so far is done.
func (q *queue) wait() (<-chan struct{}, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, notify.ErrClosed
	}
	c := make(chan struct{})
	q.waiters = append(q.waiters, c)
	q.wakeLocked()
	return c, nil
}

type taken struct {
	events  []notify.Event
	waiters []chan struct{}
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
		for _, c := range q.waiters {
			close(c)
		}
		q.waiters = nil
		return taken{}, false
	}
	t := taken{q.events, q.waiters, q.idle}
	q.events, q.waiters, q.idle = spare[:0], nil, false
	q.room.Broadcast()
	return t, true
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
