package replay

import (
	"sync/atomic"
	"time"
)

// Stats are counters since the start. All may be read at any time.
type Stats struct {
	// Replayed counts steps that fired in the guest; Dropped counts events that
	// concern nothing the guest knows; Masked those outside the mask.
	Replayed, Dropped, Masked atomic.Uint64
	// Retries counts steps that were repeated after the name was expired; Fallbacks
	// those that could not be replayed, so that only caches were dropped.
	Retries, Fallbacks atomic.Uint64
	// Unexpected counts requests of the replayer that no step expected: a bug.
	Unexpected atomic.Uint64
	// Overflows counts losses that the source reported; Reconciled counts
	// events made up by comparing.
	Overflows, Reconciled atomic.Uint64
	// Skipped counts events that the guest's own later change had overtaken.
	Skipped atomic.Uint64
	// Backlog is the length of the queue; DelayLast the age of the last replayed event in nanoseconds.
	Backlog, DelayLast atomic.Int64

	last atomic.Pointer[string]
}

func (s *Stats) setLast(text string) { s.last.Store(&text) }

// LastProblem returns what went wrong last, or "".
func (s *Stats) LastProblem() string {
	if p := s.last.Load(); p != nil {
		return *p
	}
	return ""
}

func (s *Stats) delay(at time.Time) {
	if !at.IsZero() {
		s.DelayLast.Store(int64(time.Since(at)))
	}
}
