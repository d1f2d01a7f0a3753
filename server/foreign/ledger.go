package foreign

import (
	"sync"
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

const (
	// ledgerLimit bounds the operations that are remembered; beyond it the oldest is forgotten.
	ledgerLimit = 1 << 16
	// ledgerLife bounds how long one is remembered, whatever happens to the connection.
	ledgerLife = 10 * time.Minute
	// changeGrace is how long after its end an operation's changes of content and attributes may
	// still be made by the file server, closeGrace its close: FUSE sends RELEASE after close(2)
	// has returned.
	changeGrace = 100 * time.Millisecond
	closeGrace  = time.Second
)

// sticky are changes that a file server may make in other pieces than the guest did: they are explained
// until the operation's time is over. The others once each.
const sticky = notify.Modify | notify.Attrib

// ledger remembers what the guest does through the mount until its echo has come from the server or
// can come no more. It implements notify.Ledger's Expect; the rest does not fit, since what comes back is
// no raw record.
type ledger struct {
	busy chan struct{} // something was announced

	mu    sync.Mutex
	at    map[entryKey][]*operation // the oldest first
	order []*operation
	count int
	// fences are the last barriers: an event that came after done is of after asked.
	fences []fence
}

// fence is a barrier that was asked for and has come back.
type fence struct{ asked, done time.Time }

// maxFences bounds what is remembered of them.
const maxFences = 16

type entryKey struct {
	dir  notify.Object // of the passthrough file system
	name string
}

type operation struct {
	key        entryKey
	begin, end time.Time
	open       int // how many of them have not ended
	gone       bool
	matched    bool // some of its echo has come
	more       []notify.Mask
	any        notify.Mask // what may come, as often as it likes
}

func newLedger() *ledger {
	return &ledger{busy: make(chan struct{}, 1), at: make(map[entryKey][]*operation)}
}

// Expect is notify.Ledger's.
func (s *Share) Expect(dir notify.Object, name string, masks ...notify.Mask) (done func()) {
	return s.ledger.expect(dir, name, masks...)
}

// Swallow, BeginRead and Drained are notify.Ledger's; nobody calls them, since Resolve does their work.
func (s *Share) Swallow(*notify.Raw) bool { return false }

// BeginRead is notify.Ledger's.
func (s *Share) BeginRead() uint64 { return 0 }

// Drained is notify.Ledger's.
func (s *Share) Drained(uint64) {}

func (l *ledger) expect(dir notify.Object, name string, masks ...notify.Mask) (done func()) {
	op := &operation{key: entryKey{dir, name}, begin: time.Now(), open: 1}
	for _, m := range masks {
		m &^= notify.IsDir
		op.any |= m & sticky
		if m &^= sticky; m != 0 {
			op.more = append(op.more, m)
		}
		if m&notify.Create != 0 {
			op.any |= notify.Attrib // file servers give what they make to its owner
		}
	}
	l.mu.Lock()
	if same := l.lastLocked(op); same != nil {
		same.open++
		same.matched = false
		op = same
	} else {
		for l.count >= ledgerLimit {
			l.dropLocked(l.oldestLocked())
		}
		l.at[op.key] = append(l.at[op.key], op)
		l.order = append(l.order, op)
		l.count++
	}
	l.mu.Unlock()
	return func() {
		l.mu.Lock()
		op.open--
		op.end = time.Now()
		l.mu.Unlock()
		select {
		case l.busy <- struct{}{}:
		default:
		}
	}
}

// lastLocked returns the last operation of op's name if the two are writes that explain the same: many
// writes to one file are one.
func (l *ledger) lastLocked(op *operation) *operation {
	list := l.at[op.key]
	if len(op.more) > 0 || len(list) == 0 {
		return nil
	}
	if last := list[len(list)-1]; len(last.more) == 0 && last.any == op.any {
		return last
	}
	return nil
}

func (l *ledger) oldestLocked() *operation {
	for len(l.order) > 0 {
		op := l.order[0]
		if !op.gone {
			return op
		}
		l.order = l.order[1:]
	}
	return nil
}

func (l *ledger) dropLocked(op *operation) {
	if op == nil || op.gone {
		return
	}
	op.gone = true
	l.count--
	list := l.at[op.key]
	for i, o := range list {
		if o == op {
			list = append(list[:i], list[i+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(l.at, op.key)
	} else {
		l.at[op.key] = list
	}
}

// explains reports whether the event is an echo, and strikes it off. from and to are the event's
// directories. loose says that the event is known to be the doing of our file server, who may use
// other calls than the guest did: then any operation of ours on a name explains it.
func (l *ledger) explains(ev *notify.Event, from, to notify.Object, loose bool) bool {
	a, b := entryKey{from, ev.Name}, entryKey{to, ev.NewName}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == 0 {
		return false
	}
	after := l.fenceLocked(ev.Remote.Arrived)
	var parts []part
	switch ev.Op {
	case notify.OpRename:
		parts = append(parts, part{a, notify.MovedFrom}, part{b, notify.MovedTo})
	case notify.OpExchange:
		parts = append(parts, part{a, notify.MovedFrom}, part{b, notify.MovedTo}, part{b, notify.MovedFrom}, part{a, notify.MovedTo})
	default:
		parts = append(parts, part{a, ev.Op.Mask()})
	}
	found := make([]*operation, 0, 4)
	for _, p := range parts {
		if p.key.dir.IsZero() {
			continue
		}
		op := l.findLocked(p, after)
		if op == nil {
			// Somebody else is at it: the closes that follow are not ours.
			for _, op := range l.at[p.key] {
				op.any &^= notify.CloseWrite
			}
			return loose && l.touchedLocked(parts)
		}
		found = append(found, op)
	}
	if len(found) == 0 {
		return false
	}
	i := 0
	for _, p := range parts {
		if !p.key.dir.IsZero() {
			found[i].strike(p.bit)
			i++
		}
	}
	return true
}

// part is one of the bits that an event consists of.
type part struct {
	key entryKey
	bit notify.Mask
}

// findLocked returns the oldest operation that explains the part of an event which is of after a time.
func (l *ledger) findLocked(p part, after time.Time) *operation {
	for _, op := range l.at[p.key] {
		if op.over(after) {
			continue
		}
		if op.any&p.bit != 0 {
			return op
		}
		for _, m := range op.more {
			if m&p.bit != 0 {
				return op
			}
		}
	}
	return nil
}

func (l *ledger) touchedLocked(parts []part) bool {
	for _, p := range parts {
		if !p.key.dir.IsZero() && len(l.at[p.key]) > 0 {
			return true
		}
	}
	return false
}

// strike takes a bit off. The operation stays until its time is over: it also says what the guest did last.
func (op *operation) strike(bit notify.Mask) {
	op.matched = true
	for i, m := range op.more {
		if m&bit == 0 {
			continue
		}
		if m &^= bit; m != 0 {
			op.more[i] = m
		} else {
			op.more = append(op.more[:i], op.more[i+1:]...)
		}
		if bit == notify.CloseWrite {
			// A file server may have had the file open twice; the other close comes at once.
			op.any |= bit
			op.end = time.Now()
		}
		return
	}
}

// since returns when the guest began the oldest change of a name whose echo had not come at arrived.
func (l *ledger) since(dir notify.Object, name string, arrived time.Time) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	after := l.fenceLocked(arrived)
	for _, op := range l.at[entryKey{dir, name}] {
		if op.over(after) {
			continue
		}
		for _, m := range op.more {
			if m&(notify.Create|notify.Delete|notify.Moves) != 0 {
				return op.begin, true
			}
		}
	}
	return time.Time{}, false
}

// quiet reports whether nothing can come back any more of what was done before t.
func (l *ledger) quiet(t time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, op := range l.order {
		if !op.gone && !op.over(t) {
			return false
		}
	}
	return true
}

// expire forgets what was over at t.
func (l *ledger) expire(t time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := l.order[:0]
	for _, op := range l.order {
		switch {
		case op.gone:
		case op.open == 0 && time.Since(op.begin) > ledgerLife, op.over(t):
			l.dropLocked(op)
		default:
			kept = append(kept, op)
		}
	}
	clear(l.order[len(kept):])
	l.order = kept
}

// over reports whether all that could come of op was made before t.
func (op *operation) over(t time.Time) bool {
	return op.open == 0 && op.end.Add(op.grace()).Before(t)
}

// passed takes note of a barrier.
func (l *ledger) passed(asked, done time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.fences) >= maxFences {
		l.fences = append(l.fences[:0], l.fences[1:]...)
	}
	l.fences = append(l.fences, fence{asked, done})
}

// fenceLocked returns the time after which an event was made that came at arrived, as far as barriers tell.
func (l *ledger) fenceLocked(arrived time.Time) (after time.Time) {
	for _, f := range l.fences {
		if !f.done.After(arrived) && f.asked.After(after) {
			after = f.asked
		}
	}
	return after
}

func (op *operation) grace() time.Duration {
	if op.matched {
		return 0
	}
	for _, m := range op.more {
		if m&notify.CloseWrite != 0 {
			return closeGrace
		}
	}
	if op.any != 0 {
		return changeGrace
	}
	return 0
}

func (l *ledger) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

// clear forgets everything.
func (l *ledger) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, op := range l.order {
		op.gone = true
	}
	l.at, l.order, l.count = make(map[entryKey][]*operation), nil, 0
}
