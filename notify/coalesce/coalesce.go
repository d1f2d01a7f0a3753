package coalesce

import (
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

const (
	defaultMoveWait = 2 * time.Millisecond
	defaultLimit    = 8192
)

// entryBits are told under the lock of the directory.
const entryBits = notify.Create | notify.Delete | notify.Moves | notify.Rename

// Config holds the bounds of a Coalescer. Its zero value works.
type Config struct {
	// MoveWait is how long an IN_MOVED_FROM waits for its IN_MOVED_TO; 0 is 2ms.
	MoveWait time.Duration
	// Limit is the number of records that are held at most; 0 is 8192.
	Limit int
}

// Coalescer makes Events of Raw records. It is not safe for concurrent use.
type Coalescer struct {
	wait  time.Duration
	limit int

	out   []notify.Event // of the call under way
	start int            // where its events begin; older ones are the caller's
	calls uint64

	held   []heldRaw
	movers []int                 // indices in held of halves, mates included
	inDir  map[notify.Object]int // how many of held are of a directory
	recent [4]recentMove
	turn   int // slot of recent to use next
	moves  int // slots in use
	merge  merger

	carried, spare, joined []notify.Raw // see carry.go
}

// heldRaw is a half of a rename, or a record that must not overtake one.
type heldRaw struct {
	raw  notify.Raw
	at   time.Time
	half bool // waits for its other half, not merely behind one
	// moved is the directory that the record moves, if the backend knows it.
	moved notify.Object
}

// recentMove is a rename after which no entry record of its two directories has
// been told. A rename straight back may be the other part of an exchange.
type recentMove struct {
	used          bool
	call          uint64
	index         int // in out, if call is the call under way
	isDir         bool
	object        notify.Object
	from, to      notify.Object
	fname, toname string
}

// New returns a Coalescer with nothing held.
func New(cfg Config) *Coalescer {
	c := &Coalescer{wait: cfg.MoveWait, limit: cfg.Limit, inDir: map[notify.Object]int{}}
	if c.wait <= 0 {
		c.wait = defaultMoveWait
	}
	if c.limit <= 0 {
		c.limit = defaultLimit
	}
	return c
}

// Push takes a batch of records in the order in which they were read at the
// time now, and appends to dst what they tell, and what is overdue. It keeps
// neither slice. Seq and Time of the events are left for the caller.
func (c *Coalescer) Push(dst []notify.Event, raws []notify.Raw, now time.Time) []notify.Event {
	c.begin(dst)
	for len(raws) > 0 {
		n := 0
		for n < len(raws) && raws[n].Mask&notify.QOverflow == 0 {
			n++
		}
		c.segment(raws[:n], now)
		if n < len(raws) {
			c.drain()
			c.forgetMoves()
			c.Settled()
			c.out = append(c.out, notify.Event{Op: notify.OpOverflow, Dir: raws[n].Dir})
			n++
		}
		raws = raws[n:]
	}
	c.expire(now)
	return c.end()
}

// Flush appends to dst what is overdue at now: halves that have waited for
// MoveWait, and what waited behind them. A reader that has not emptied its
// queue pushes first, and flushes after. A time far ahead flushes everything.
func (c *Coalescer) Flush(dst []notify.Event, now time.Time) []notify.Event {
	c.begin(dst)
	c.expire(now)
	return c.end()
}

// Deadline returns when Flush has something to tell, or the zero time if
// nothing is held.
func (c *Coalescer) Deadline() time.Time {
	var first time.Time
	for _, i := range c.movers {
		if t := c.due(i); c.held[i].half && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}

func (c *Coalescer) begin(dst []notify.Event) {
	c.out, c.start = dst, len(dst)
	c.calls++
}

func (c *Coalescer) end() []notify.Event {
	out := c.out
	c.out, c.start = nil, 0
	return out
}

// segment handles records with no overflow among them.
func (c *Coalescer) segment(raws []notify.Raw, now time.Time) {
	var union notify.Mask
	late, known := false, false
	for i := range raws {
		m := raws[i].Mask &^ notify.IsDir
		union |= m
		if m&(notify.Delete|notify.DeleteSelf) != 0 && m&(m-1) != 0 {
			late = true
		}
		known = known || !raws[i].Object.IsZero() && !isMoveSelf(&raws[i])
	}
	switch {
	case union&notify.Moves != 0 || len(c.held) > 0:
		c.stream(raws, now)
	case late,
		len(raws) > 1 && union&notify.Rename != 0,
		len(c.carried) > 0 && union&entryBits != 0,
		known && union&notify.Create != 0 && union&notify.Delete != 0:
		c.merged(raws)
	default:
		for i := range raws {
			c.expand(&raws[i], raws[i].Mask)
		}
	}
}

// stream handles records of inotify, which merges nothing but its last record.
func (c *Coalescer) stream(raws []notify.Raw, now time.Time) {
	for i := 0; i < len(raws); i++ {
		r := &raws[i]
		if len(c.held) == 0 && isHalf(r) && i+1 < len(raws) && mates(r, &raws[i+1]) {
			c.rename(r, &raws[i+1])
			i++
			continue
		}
		h := heldRaw{raw: *r, at: now}
		if len(c.movers) > 0 && isMovedDir(r) {
			h.moved = whose(r, raws[i+1:])
		}
		c.step(h)
		if len(c.held) >= c.limit {
			c.drain()
		}
	}
}

// step tells one record, or holds it.
func (c *Coalescer) step(h heldRaw) {
	r := &h.raw
	h.half = false
	if isMoveSelf(r) {
		c.known(r)
		return
	}
	if r.Mask&entryBits != 0 {
		// A half in the same directory has either met its mate or is proven single.
		if i := c.halfIn(r.Dir); i >= 0 && !mates(&c.held[i].raw, r) {
			c.release(i, nil)
			c.step(h)
			return
		}
	}
	earlier := c.before(&h)
	if earlier >= 0 && c.held[earlier].half {
		// What comes back has left, and is not to be told in the other order.
		c.release(earlier, nil)
		c.step(h)
		return
	}
	if r.Mask&notify.MovedTo != 0 && r.Cookie != 0 {
		if i := c.halfOf(r.Cookie); i >= 0 && (c.held[i].raw.Dir == r.Dir || !c.blocked(r)) {
			c.release(i, r)
			return
		}
	}
	switch {
	case len(c.held) > 0 && (earlier >= 0 || c.blocked(r) || c.mateBlocked(r)):
		c.hold(h)
	case isHalf(r):
		h.half = true
		c.hold(h)
	default:
		c.expand(r, r.Mask)
	}
}

func (c *Coalescer) hold(h heldRaw) {
	if h.moved.IsZero() && isHalf(&h.raw) {
		h.moved = h.raw.Object
	}
	if h.raw.Mask&notify.Moves != 0 {
		c.movers = append(c.movers, len(c.held))
	}
	c.held = append(c.held, h)
	c.inDir[h.raw.Dir]++
}

// known notes which directory a held record moves: what is below it is not to be told before.
func (c *Coalescer) known(r *notify.Raw) {
	for _, i := range c.movers {
		if h := &c.held[i]; h.raw.Mask&notify.IsDir != 0 && h.raw.Cookie == r.Cookie {
			h.moved = r.Object
		}
	}
}

// selfWithin is how many records behind a move the one is looked for that tells whose it was.
const selfWithin = 32

// whose returns the directory that r moves, if that is told of in what was read with it.
func whose(r *notify.Raw, next []notify.Raw) notify.Object {
	for i := range next[:min(len(next), selfWithin)] {
		if isMoveSelf(&next[i]) && next[i].Cookie == r.Cookie {
			return next[i].Object
		}
	}
	return notify.Object{}
}

// before returns the held record of an earlier move of the same directory, or -1.
func (c *Coalescer) before(h *heldRaw) int {
	for _, i := range c.movers {
		if o := &c.held[i]; !h.moved.IsZero() && o.moved == h.moved && o.raw.Cookie != h.raw.Cookie {
			return i
		}
	}
	return -1
}

// release tells the half at i, with its mate or as a move out, and then what
// it held up, as if that came only now.
func (c *Coalescer) release(i int, mate *notify.Raw) {
	old := c.held
	c.held, c.movers = nil, c.movers[:0]
	clear(c.inDir)
	if mate != nil {
		c.rename(&old[i].raw, mate)
	} else {
		c.expand(&old[i].raw, old[i].raw.Mask)
	}
	for j := range old {
		if j != i {
			c.step(old[j])
		}
	}
	if c.held == nil && cap(old) <= c.limit {
		clear(old)
		c.held = old[:0]
	}
}

// expire releases the halves that have waited long enough.
func (c *Coalescer) expire(now time.Time) {
	for n := 0; n < len(c.movers); n++ {
		if i := c.movers[n]; c.held[i].half && !now.Before(c.due(i)) {
			c.release(i, nil)
			n = -1
		}
	}
}

// due is when the half at i has waited long enough. One whose mate is held, behind
// another half, has that one's wait to wait for first.
func (c *Coalescer) due(i int) time.Time {
	h := &c.held[i]
	if c.mateHeld(h.raw.Cookie) {
		return h.at.Add(2 * c.wait)
	}
	return h.at.Add(c.wait)
}

// drain tells everything held, in order, single halves first. The first held
// record is a half always, since there is nothing it could be behind.
func (c *Coalescer) drain() {
	for len(c.held) > 0 {
		first := 0
		for _, i := range c.movers {
			if c.held[i].half && !c.mateHeld(c.held[i].raw.Cookie) {
				first = i
				break
			}
		}
		c.release(first, nil)
	}
}

// blocked reports whether r would overtake a held record: one of the same
// directory, or the move of r's directory or of one above it.
func (c *Coalescer) blocked(r *notify.Raw) bool {
	if c.inDir[r.Dir] > 0 {
		return true
	}
	for _, i := range c.movers {
		if h := &c.held[i]; !h.moved.IsZero() && (h.moved == r.Dir || r.Moved.Has(h.moved)) {
			return true
		}
	}
	return false
}

// mateBlocked reports whether r's first half is held and cannot be told yet.
func (c *Coalescer) mateBlocked(r *notify.Raw) bool {
	if r.Mask&notify.MovedTo == 0 || r.Cookie == 0 {
		return false
	}
	for _, i := range c.movers {
		if mates(&c.held[i].raw, r) {
			return true
		}
	}
	return false
}

func (c *Coalescer) mateHeld(cookie uint32) bool {
	for _, i := range c.movers {
		if c.held[i].raw.Mask&notify.MovedTo != 0 && c.held[i].raw.Cookie == cookie {
			return true
		}
	}
	return false
}

func (c *Coalescer) halfIn(dir notify.Object) int {
	for _, i := range c.movers {
		if c.held[i].half && c.held[i].raw.Dir == dir {
			return i
		}
	}
	return -1
}

func (c *Coalescer) halfOf(cookie uint32) int {
	for _, i := range c.movers {
		if c.held[i].half && c.held[i].raw.Cookie == cookie {
			return i
		}
	}
	return -1
}

// isMoveSelf reports whether r tells which directory the halves with its cookie move.
func isMoveSelf(r *notify.Raw) bool { return r.Mask&notify.MoveSelf != 0 && r.Cookie != 0 }

// isMovedDir reports whether r is the second half of a directory's rename.
func isMovedDir(r *notify.Raw) bool {
	return r.Mask&notify.MovedTo != 0 && r.Mask&notify.IsDir != 0 && r.Cookie != 0
}

func isHalf(r *notify.Raw) bool { return r.Mask&notify.MovedFrom != 0 && r.Cookie != 0 }

func mates(from, to *notify.Raw) bool {
	return from.Mask&notify.MovedFrom != 0 && to.Mask&notify.MovedTo != 0 &&
		from.Cookie == to.Cookie && from.Cookie != 0
}
