package replay

import (
	"sync/atomic"
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

// Stats are counters since the start. All may be read at any time.
type Stats struct {
	// Heard counts the events that the source told, by notify.Op.
	Heard [notify.OpOverflow + 1]atomic.Uint64
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
	// Echoes counts events of another machine that the guest had caused itself; Late those that
	// went out before the wrapped file system showed what they told.
	Echoes, Late atomic.Uint64
	// Backlog is how many events wait, or are being replayed.
	Backlog atomic.Int64
	// Delay is from the source's reading of an event to the end of its replay.
	Delay Delays

	// step is when the replayer last ended a step or began a batch, in nanoseconds since 1970;
	// 0 while it has nothing to do.
	step atomic.Int64
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

// Stuck returns for how long the replayer has been busy with one step; 0 if it has nothing to do.
func (s *Stats) Stuck(now time.Time) time.Duration {
	at := s.step.Load()
	if at == 0 {
		return 0
	}
	return max(now.Sub(time.Unix(0, at)), 0)
}

// stepped says that an event that was read at the given time has been dealt with.
func (s *Stats) stepped(read time.Time) {
	now := time.Now()
	s.step.Store(now.UnixNano())
	if !read.IsZero() {
		s.Delay.observe(now.Sub(read))
	}
}

// delayBounds are the largest durations of all classes but the last.
var delayBounds = [...]time.Duration{
	50 * time.Microsecond, 100 * time.Microsecond, 200 * time.Microsecond, 300 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 500 * time.Millisecond, time.Second, 10 * time.Second,
}

// Delays counts durations by class.
type Delays struct {
	classes [len(delayBounds) + 1]atomic.Uint64
	sum     atomic.Int64
}

func (d *Delays) observe(v time.Duration) {
	i := 0
	for i < len(delayBounds) && v > delayBounds[i] {
		i++
	}
	d.classes[i].Add(1)
	d.sum.Add(int64(v))
}

// Snapshot returns the upper bounds, how many durations were at or below each of them, how many there
// were in all, and their sum.
func (d *Delays) Snapshot() (bounds []time.Duration, counts []uint64, count uint64, sum time.Duration) {
	for i := range d.classes {
		count += d.classes[i].Load()
		if i < len(delayBounds) {
			bounds, counts = append(bounds, delayBounds[i]), append(counts, count)
		}
	}
	return bounds, counts, count, time.Duration(d.sum.Load())
}
