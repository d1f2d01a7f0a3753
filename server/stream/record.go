package stream

import (
	"context"
	"time"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
)

// Record is one change of a root, or the news that changes were lost.
type Record struct {
	Op    protocol.Op
	IsDir bool
	// From and To are as in protocol.Event.
	From   protocol.Place
	To     protocol.Place
	Cookie uint32
	Pid    int32
	// Object is what the event is about; Dir and NewDir are the directories of From and To, and
	// Other is an exchange's other object.
	Object, Dir, NewDir, Other notify.Object
	OtherIsDir                 bool
	// Verify, Origin and the states are as in protocol.Event.
	Verify, Found      bool
	Origin             string
	FromState, ToState protocol.State
	Time               time.Time
	// Lost, if not zero, makes it a gap: what is below Scope has to be compared. The fields
	// above do not count then.
	Lost  protocol.Reason
	Scope string
}

// Source finds out what happens in a root.
type Source interface {
	// Run calls emit, from one goroutine at a time, until ctx ends, and then returns nil. emit does not
	// keep the slice, and blocks for no longer than a write to the journal.
	Run(ctx context.Context, emit func([]Record)) error
}

// entry is a record in the journal. It is never changed.
type entry struct {
	seq   uint64
	op    protocol.Op
	isDir bool
	from  protocol.Place
	to    protocol.Place
	lost  protocol.Reason
	scope string
	// raw is the event as EventEncoder makes it, empty for a gap.
	raw []byte
}

// entryOverhead is about what an entry takes besides its strings.
const entryOverhead = 192

func (e *entry) size() int {
	return entryOverhead + len(e.raw) + len(e.from.Dir) + len(e.from.Name) + len(e.to.Dir) + len(e.to.Name) + len(e.scope)
}

// twoPlaces reports whether both places matter.
func (e *entry) twoPlaces() bool { return e.op == protocol.OpRename || e.op == protocol.OpExchange }

func entryOf(ev *protocol.Event, raw []byte) *entry {
	return &entry{seq: ev.Seq, op: ev.Op, isDir: ev.IsDir, from: ev.From, to: ev.To, raw: raw}
}

// maker turns records into entries.
type maker struct {
	enc    protocol.EventEncoder
	sealer *protocol.Sealer
	buf    []byte
	// dir is the last directory that was sealed: the next event is likely in the same.
	dir   notify.Object
	dirID protocol.Identity
}

// sealDir is Seal for directories.
func (m *maker) sealDir(obj notify.Object) protocol.Identity {
	if obj.IsZero() {
		return protocol.Identity{}
	}
	if obj != m.dir {
		m.dir, m.dirID = obj, m.sealer.Seal(obj)
	}
	return m.dirID
}

func (m *maker) make(seq uint64, r *Record) *entry {
	if r.Lost != 0 {
		return &entry{seq: seq, lost: r.Lost, scope: clip(r.Scope)}
	}
	if tooLong(r.From) || tooLong(r.To) {
		// It cannot be said, so it is a loss; the scope is the nearest directory that can.
		var scope span
		scope.addEntry(&entry{from: r.From, to: r.To})
		return &entry{seq: seq, lost: protocol.GapRescan, scope: clip(scope.dir)}
	}
	ev := protocol.Event{
		Seq: seq, Time: r.Time, Op: r.Op, IsDir: r.IsDir, From: r.From, To: r.To,
		Cookie: r.Cookie, Pid: r.Pid, Object: m.sealer.Seal(r.Object),
		Dir: m.sealDir(r.Dir), NewDir: m.sealDir(r.NewDir), Other: m.sealer.Seal(r.Other), OtherIsDir: r.OtherIsDir,
		Verify: r.Verify, Found: r.Found, Origin: r.Origin, FromState: r.FromState, ToState: r.ToState,
	}
	m.buf = m.enc.AppendEvent(m.buf[:0], &ev)
	return entryOf(&ev, append(make([]byte, 0, len(m.buf)), m.buf...))
}

func tooLong(p protocol.Place) bool {
	return len(p.Dir) > protocol.MaxPath || len(p.Name) > protocol.MaxName
}
