// Package echo is the notify.Ledger: it tells what we did to the host tree from what others did, for
// queues whose records do not say who.
//
// # Concepts
//
// Whoever is about to change the tree calls Expect with the records that the change will
// make, changes it, and calls done. The reader of the queue asks Swallow of each record. A record is
// an echo if it was expected and stands in the queue behind the place where the queue ended
// at Expect and before the place where it ended at done: the operation's
// records cannot be anywhere else. What was not found by then was merged
// into a neighbour by the kernel and is forgotten.
//
// Places are byte positions, for a reader that can tell them (Bind, At: inotify
// has FIONREAD). For any other reader they are tickets: BeginRead counts, and Drained(t) says that
// what was done before t has been read. Then an expectation may outlive its operation until the
// next end of the queue, and could take one equal later record; call done before anybody else can
// learn of the operation.
//
// # What cannot be told
//
// Inside an operation's window, somebody else's equal change of the same name looks the same, and
// one that the kernel merged into ours has no record at all.
//
// # Lock order
//
//	the position function's own lock, released before
//	Ledger.mu
package echo

import (
	"math/bits"
	"sync"

	"github.com/heraldfs/heraldfs/notify"
)

// defaultLimit bounds the expectations that are held.
const defaultLimit = 64 << 10

// Options for New. The zero value works.
type Options struct {
	// Limit is the number of records that can be expected at a time; 0 is 65536. Beyond it the oldest
	// finished operation is forgotten; if none is, a new one is not recorded,
	// and is heard of like anybody's.
	Limit int
}

// Ledger implements notify.Ledger. All methods may be called from any goroutine, but At, Swallow, BeginRead
// and Drained only from one.
type Ledger struct {
	limit int

	mu       sync.Mutex
	end      func() uint64 // nil: tickets
	pos      uint64        // of the record that Swallow is asked about
	clock    uint64
	expected map[entry][]expectation // oldest first
	open     map[entry][]*operation  // not done yet; kept for positions only
	finished []*operation            // in the order of end; those with nothing left are skipped
	count    int
}

type entry struct {
	dir  notify.Object
	name string
}

type expectation struct {
	bit notify.Mask
	op  *operation
}

// operation is one Expect. Its window is [begin, end).
type operation struct {
	at         entry
	begin, end uint64
	done       bool
	left       int
	struck     []strike // while it is open
}

// strike is an expectation that was met at pos.
type strike struct {
	bit notify.Mask
	pos uint64
}

// New returns an empty Ledger.
func New(o Options) *Ledger {
	if o.Limit <= 0 {
		o.Limit = defaultLimit
	}
	return &Ledger{limit: o.Limit, expected: make(map[entry][]expectation), open: make(map[entry][]*operation)}
}

// Bind makes end tell where the queue ends; nil goes back to tickets. What was expected
// is forgotten: its places mean nothing now.
func (l *Ledger) Bind(end func() uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end, l.pos = end, 0
	for _, list := range l.expected {
		for _, x := range list {
			x.op.left = 0 // for those that are still to be done
		}
	}
	clear(l.expected)
	clear(l.open)
	l.finished, l.count = nil, 0
}

// At says where the record stands that Swallow is asked about next.
func (l *Ledger) At(pos uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pos = pos
}

// place returns the end of the queue, or the next tick.
func (l *Ledger) place() uint64 {
	l.mu.Lock()
	end := l.end
	if end == nil {
		l.clock++
		t := l.clock
		l.mu.Unlock()
		return t
	}
	l.mu.Unlock()
	return end()
}

// Expect is notify.Ledger's. A mask with several bits stands for one record each;
// ISDIR does not count.
func (l *Ledger) Expect(dir notify.Object, name string, masks ...notify.Mask) (done func()) {
	op := &operation{at: entry{dir, name}, begin: l.place()}
	for _, m := range masks {
		op.left += bits.OnesCount64(uint64(m &^ notify.IsDir))
	}
	l.mu.Lock()
	ok := op.left > 0 && l.roomLocked(op.left)
	if ok {
		l.count += op.left
		if l.end != nil {
			l.open[op.at] = append(l.open[op.at], op)
		}
		for _, m := range masks {
			for m &^= notify.IsDir; m != 0; m &= m - 1 {
				l.expected[op.at] = append(l.expected[op.at], expectation{m & -m, op})
			}
		}
	}
	l.mu.Unlock()
	if !ok {
		return func() {}
	}
	return func() { l.finish(op) }
}

// roomLocked makes room for n more if it can.
func (l *Ledger) roomLocked(n int) bool {
	for l.count+n > l.limit && len(l.finished) > 0 {
		l.dropLocked(l.finished[0])
		l.finished = l.finished[1:]
	}
	return l.count+n <= l.limit
}

func (l *Ledger) finish(op *operation) {
	end := l.place()
	l.mu.Lock()
	defer l.mu.Unlock()
	if op.done {
		return
	}
	op.done, op.end = true, end
	l.closeLocked(op)
	if op.left > 0 {
		l.finished = append(l.finished, op)
	}
}

// closeLocked takes op off the open ones. While several operations on one name were under way, a record of op's
// may have been struck off another: then what op has left is the other's.
func (l *Ledger) closeLocked(op *operation) {
	others := l.open[op.at]
	if len(others) == 0 {
		return
	}
	kept := others[:0]
	for _, o := range others {
		if o != op {
			kept = append(kept, o)
		}
	}
	if len(kept) == 0 {
		delete(l.open, op.at)
	} else {
		l.open[op.at] = kept
	}
	op.struck = nil
	list := l.expected[op.at]
	for i := range list {
		if list[i].op != op {
			continue
		}
		if o := creditor(kept, list[i].bit, op.begin); o != nil {
			list[i].op = o
			o.left++
			op.left--
		}
	}
}

// creditor finds an open operation that was struck at or behind begin, and takes the strike back.
func creditor(open []*operation, bit notify.Mask, begin uint64) *operation {
	for _, o := range open {
		for i, s := range o.struck {
			if s.bit == bit && s.pos >= begin {
				o.struck = append(o.struck[:i], o.struck[i+1:]...)
				return o
			}
		}
	}
	return nil
}

// Swallow is notify.Ledger's. Of a record with several bits, the expected ones are
// struck off r.Mask too; it is swallowed when no other is left.
func (l *Ledger) Swallow(r *notify.Raw) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == 0 {
		return false
	}
	if r.Mask&notify.Rename != 0 {
		return l.swallowRenameLocked(r)
	}
	rest := r.Mask &^ notify.IsDir
	for m := rest; m != 0; m &= m - 1 {
		if bit := m & -m; l.strikeLocked(entry{r.Dir, r.Name}, bit) {
			rest &^= bit
		}
	}
	if rest == 0 && r.Mask&^notify.IsDir != 0 {
		return true
	}
	r.Mask = rest | r.Mask&notify.IsDir
	return false
}

// swallowRenameLocked strikes off both halves, or neither.
func (l *Ledger) swallowRenameLocked(r *notify.Raw) bool {
	from, to := entry{r.Dir, r.Name}, entry{r.NewDir, r.NewName}
	if !r.Dir.IsZero() && l.findLocked(from, notify.MovedFrom) < 0 ||
		!r.NewDir.IsZero() && l.findLocked(to, notify.MovedTo) < 0 {
		return false
	}
	l.strikeLocked(from, notify.MovedFrom)
	l.strikeLocked(to, notify.MovedTo)
	return true
}

// findLocked returns an expectation of bit at e whose window the record is in, or -1. Of several it
// is the one whose window closes first, so that no later record is left without.
func (l *Ledger) findLocked(e entry, bit notify.Mask) int {
	best := -1
	for i, x := range l.expected[e] {
		if x.bit != bit {
			continue
		}
		if l.end != nil && (x.op.begin > l.pos || x.op.done && l.pos >= x.op.end) {
			continue
		}
		if best < 0 || x.op.endsBefore(l.expected[e][best].op) {
			best = i
		}
	}
	return best
}

func (op *operation) endsBefore(other *operation) bool {
	if !op.done || !other.done {
		return op.done
	}
	return op.end < other.end
}

func (l *Ledger) strikeLocked(e entry, bit notify.Mask) bool {
	i := l.findLocked(e, bit)
	if i < 0 {
		return false
	}
	list := l.expected[e]
	op := list[i].op
	op.left--
	l.count--
	if l.end != nil && !op.done {
		op.struck = append(op.struck, strike{bit, l.pos})
	}
	if len(list) == 1 {
		delete(l.expected, e)
	} else {
		l.expected[e] = append(list[:i], list[i+1:]...)
	}
	return true
}

// dropLocked forgets what is left of op.
func (l *Ledger) dropLocked(op *operation) {
	if op.left == 0 {
		return
	}
	kept := l.expected[op.at][:0]
	for _, x := range l.expected[op.at] {
		if x.op != op {
			kept = append(kept, x)
		}
	}
	if len(kept) == 0 {
		delete(l.expected, op.at)
	} else {
		l.expected[op.at] = kept
	}
	l.count -= op.left
	op.left = 0
}

// BeginRead is notify.Ledger's.
func (l *Ledger) BeginRead() uint64 { return l.place() }

// Drained is notify.Ledger's.
func (l *Ledger) Drained(t uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := l.finished[:0]
	for _, op := range l.finished {
		switch {
		case op.left == 0:
		case op.end <= t:
			l.dropLocked(op)
		default:
			kept = append(kept, op)
		}
	}
	clear(l.finished[len(kept):])
	l.finished = kept
}
