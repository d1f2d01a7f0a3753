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
	ready   *sync.Cond
	room    *sync.Cond
	limit   int
	events  []notify.Event
	waiters []chan struct{}
	idle    bool
	closed  bool
	timer   *time.Timer
	fired   bool
}

func newQueue(limit int) *queue {
	q := &queue{limit: limit}
	q.ready, q.room = sync.NewCond(&q.mu), sync.NewCond(&q.mu)
	q.timer = time.AfterFunc(time.Hour, q.expire)
	q.timer.Stop()
	return q
}

func (q *queue) expire() {
	q.mu.Lock()
	q.fired = true
	q.mu.Unlock()
	q.ready.Signal()
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
	q.ready.Signal()
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
	q.ready.Signal()
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
	q.fired = false
	if timeout > 0 {
		q.timer.Reset(timeout)
		defer q.timer.Stop()
	}
	for len(q.events) == 0 && len(q.waiters) == 0 && !q.idle && !q.closed && !q.fired {
		q.ready.Wait()
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
	q.closed = true
	q.mu.Unlock()
	q.ready.Broadcast()
	q.room.Broadcast()
}
