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
	// poked makes take return although there is nothing.
	poked bool

	// lossy says that put gives everything up instead of waiting for room: who takes from
	// the queue is not trusted to. away says that nobody does at present.
	lossy, away bool
	// lost says that something was given up, since is when the first of it happened.
	lost  bool
	since time.Time
}

// awayLimit is how many events wait for an agent that is not there.
const awayLimit = 1 << 14

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

func newQueue(limit int, lossy bool) (*queue, error) {
	b, err := newBell()
	if err != nil {
		return nil, err
	}
	q := &queue{limit: limit, ready: b, lossy: lossy}
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
// its queue to the end. A lossy queue returns notify.ErrOverflow when it begins to keep nothing.
func (q *queue) put(events []notify.Event, found []finding, drained bool) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lossy && len(events) > 0 {
		if q.lost {
			return nil
		}
		if !q.makeRoomLocked(events) {
			return notify.ErrOverflow
		}
	}
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

// makeRoomLocked gives up what is in the queue if events do not fit. Then, and until recover, nothing is put.
func (q *queue) makeRoomLocked(events []notify.Event) bool {
	limit := q.limit
	if q.away {
		limit = min(limit, awayLimit)
	}
	if len(q.events)+len(events) <= limit {
		return true
	}
	q.lost, q.since = true, events[0].Time
	if len(q.events) > 0 {
		q.since = q.events[0].Time
	}
	q.events = nil
	q.wakeLocked()
	return false
}

// leave says whether nobody takes from the queue for now.
func (q *queue) leave(away bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.away = away
	if away {
		q.disappointLocked()
	}
}

// recover reports whether something was given up, and from when on. From here on events are kept again.
func (q *queue) recover() (since time.Time, lost bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	since, lost = q.since, q.lost
	q.lost = false
	return since, lost
}

// putBack puts events in front of the others.
func (q *queue) putBack(events []notify.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.lost && len(events) > 0 {
		q.events = append(append(make([]notify.Event, 0, len(events)+len(q.events)), events...), q.events...)
	}
}

// poke makes take return.
func (q *queue) poke() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.poked = true
	q.wakeLocked()
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
	for waited := false; len(q.events) == 0 && len(q.waiters) == 0 && !q.idle && !q.closed && !q.poked && !q.lost; waited = true {
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
	q.poked = false
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
