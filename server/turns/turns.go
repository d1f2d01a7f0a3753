// Package turns lets one goroutine at a time take requests and carry out the quick ones itself, and relieves it
// when one of them turns out to be slow.
//
// A Turn is odd while whoever takes requests is in a handler. Whoever moves it from odd to even by compare-and-swap has the
// role: the goroutine itself when it comes back (End), or the Watchdog's relieve, which starts another
// one (Pass). The one that comes back too late sees that and ends.
//
//	even --Begin--> odd --End---> even
//	                 \----Pass--> even, another goroutine
//
// An idle Watchdog does not tick; the first turn wakes it.
package turns

import (
	"sync/atomic"
	"time"
)

// parkAfter is how many looks without a request let the watchdog sleep.
const parkAfter = 16

// Slots counts what runs beside those who take requests, up to Max.
type Slots struct {
	Max  int64
	used atomic.Int64
}

// Take takes a slot, if there is one; Free gives it back.
func (s *Slots) Take() bool {
	if s.used.Add(1) <= s.Max {
		return true
	}
	s.used.Add(-1)
	return false
}

// Hold takes a slot, whether there is one or not.
func (s *Slots) Hold() { s.used.Add(1) }

// Free gives a slot back.
func (s *Slots) Free() { s.used.Add(-1) }

// Turn is who has the role.
type Turn struct{ n atomic.Uint64 }

// Begin is called before a handler.
func (t *Turn) Begin() (turn uint64) { return t.n.Add(1) }

// End is called after it, and reports whether the caller still has the role.
func (t *Turn) End(turn uint64) bool { return t.n.CompareAndSwap(turn, turn+1) }

// Pass takes the role from a handler that is in this turn, and reports false if it is not any more.
func (t *Turn) Pass(turn uint64) bool { return t.n.CompareAndSwap(turn, turn+1) }

// Watchdog looks after turns.
type Watchdog struct {
	every   time.Duration
	turns   []*Turn
	relieve func(i int, turn uint64)
	parked  atomic.Bool
	wake    chan struct{}
}

// NewWatchdog returns one that looks every so often. It calls relieve for turns[i] when that has been in
// one handler for two looks.
func NewWatchdog(every time.Duration, turns []*Turn, relieve func(i int, turn uint64)) *Watchdog {
	return &Watchdog{every: every, turns: turns, relieve: relieve, wake: make(chan struct{}, 1)}
}

// WakeUp is called after Begin: either the caller sees that the watchdog sleeps, or the
// watchdog sees the new turn before it does.
func (w *Watchdog) WakeUp() {
	if w.parked.Load() && w.parked.CompareAndSwap(true, false) {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// Run works until quit is closed.
func (w *Watchdog) Run(quit <-chan struct{}) {
	timer := time.NewTimer(w.every)
	defer timer.Stop()
	last := make([]uint64, len(w.turns))
	for idle := 0; ; {
		select {
		case <-timer.C:
		case <-quit:
			return
		}
		idle++
		if w.look(last) {
			idle = 0
		}
		if idle >= parkAfter {
			idle = 0
			if !w.park(last, quit) {
				return
			}
		}
		timer.Reset(w.every)
	}
}

// look relieves who has not moved since the last look, and reports whether anybody is at work.
func (w *Watchdog) look(last []uint64) (busy bool) {
	for i, t := range w.turns {
		turn := t.n.Load()
		if turn == last[i] && turn%2 == 1 {
			w.relieve(i, turn)
		}
		busy = busy || turn != last[i] || turn%2 == 1
		last[i] = turn
	}
	return busy
}

// park sleeps until the next turn. It returns false at the end.
func (w *Watchdog) park(last []uint64, quit <-chan struct{}) bool {
	w.parked.Store(true)
	for i, t := range w.turns {
		if t.n.Load() != last[i] {
			w.parked.Store(false)
			return true
		}
	}
	select {
	case <-w.wake:
		return true
	case <-quit:
		return false
	}
}
