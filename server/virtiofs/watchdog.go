package virtiofs

import (
	"sync/atomic"
	"time"
)

const (
	// slowAfter is how often the watchdog looks; a handler that it sees twice is slow.
	slowAfter = time.Millisecond
	// parkAfter is how many looks without a request let it sleep.
	parkAfter = 16
)

// slots counts what runs beside the queues' goroutines, up to a maximum.
type slots struct {
	used atomic.Int64
	max  int64
}

func (s *slots) take() bool {
	if s.used.Add(1) <= s.max {
		return true
	}
	s.used.Add(-1)
	return false
}

func (s *slots) free() { s.used.Add(-1) }

// watchdog relieves goroutines that are stuck in a handler of their queue.
type watchdog struct {
	queues []*queue
	parked atomic.Bool
	wake   chan struct{}
	quit   chan struct{}
	done   chan struct{}
}

func newWatchdog(queues []*queue) *watchdog {
	return &watchdog{queues: queues, wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
}

// wakeUp is called after a turn has moved: either the caller sees that the
// watchdog sleeps, or the watchdog sees the new turn before it does.
func (w *watchdog) wakeUp() {
	if w.parked.Load() && w.parked.CompareAndSwap(true, false) {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (w *watchdog) stop() {
	close(w.quit)
	<-w.done
}

func (w *watchdog) run() {
	defer close(w.done)
	timer := time.NewTimer(slowAfter)
	defer timer.Stop()
	last := make([]uint64, len(w.queues))
	for idle := 0; ; {
		select {
		case <-timer.C:
		case <-w.quit:
			return
		}
		idle++
		if w.look(last) {
			idle = 0
		}
		if idle >= parkAfter {
			idle = 0
			if !w.park(last) {
				return
			}
		}
		timer.Reset(slowAfter)
	}
}

// look relieves who has not moved since the last look, and reports whether anybody is at work.
func (w *watchdog) look(last []uint64) (busy bool) {
	for i, q := range w.queues {
		turn := q.turn.Load()
		if turn == last[i] && turn%2 == 1 {
			q.relieve(turn)
		}
		busy = busy || turn != last[i] || turn%2 == 1
		last[i] = turn
	}
	return busy
}

// park sleeps until the next request. It returns false at the end.
func (w *watchdog) park(last []uint64) bool {
	w.parked.Store(true)
	for i, q := range w.queues {
		if q.turn.Load() != last[i] {
			w.parked.Store(false)
			return true
		}
	}
	select {
	case <-w.wake:
		return true
	case <-w.quit:
		return false
	}
}
