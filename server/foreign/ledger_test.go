package foreign

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

var testDir = notify.Object{FS: 1, Type: 1, Handle: "dir"}

// came is an event that arrives now.
func came(op notify.Op, name string) *notify.Event {
	return &notify.Event{Op: op, Name: name, Remote: &notify.Remote{Arrived: time.Now()}}
}

func (l *ledger) is(op notify.Op, name string) bool {
	return l.explains(came(op, name), testDir, notify.Object{}, false)
}

func TestLedgerExplainsOnce(t *testing.T) {
	l := newLedger()
	l.expect(testDir, "a", notify.Create)()
	if l.is(notify.OpCreate, "b") || l.is(notify.OpDelete, "a") {
		t.Error("another name or another operation is taken for ours")
	}
	if !l.is(notify.OpCreate, "a") || l.is(notify.OpCreate, "a") {
		t.Error("a creation is not explained exactly once")
	}
	if !l.is(notify.OpAttrib, "a") {
		t.Error("the file server's chown is not explained")
	}
	l.expect(testDir, "a", notify.MovedFrom)
	l.expect(testDir, "b", notify.MovedTo)
	move := came(notify.OpRename, "a")
	move.NewName = "c"
	if l.explains(move, testDir, testDir, false) {
		t.Error("a rename to elsewhere is taken for ours")
	}
	move.NewName = "b"
	if !l.explains(move, testDir, testDir, false) || l.explains(move, testDir, testDir, false) {
		t.Error("a rename is not explained exactly once")
	}
}

// A barrier ends what an operation can explain.
func TestLedgerBarrier(t *testing.T) {
	l := newLedger()
	done := l.expect(testDir, "f", notify.Modify)
	for range 2 {
		if !l.is(notify.OpModify, "f") {
			t.Error("a write is not explained while they are made")
		}
	}
	early := came(notify.OpModify, "f")
	done()
	asked := time.Now()
	l.passed(asked, time.Now())
	if l.is(notify.OpModify, "f") {
		t.Error("a write of after the barrier is taken for ours")
	}
	if !l.explains(early, testDir, notify.Object{}, false) {
		t.Error("one that came before the barrier had passed is not")
	}
	l.expire(time.Now())
	if l.len() != 0 {
		t.Errorf("%d operations are kept", l.len())
	}
	// What has not come back may still come for a moment.
	l.expect(testDir, "f", notify.CloseWrite)()
	l.passed(time.Now(), time.Now())
	if !l.is(notify.OpCloseWrite, "f") {
		t.Error("a close that is late is not explained")
	}
	l.expire(time.Now().Add(2 * closeGrace))
	if l.len() != 0 {
		t.Errorf("%d operations are kept", l.len())
	}
}

// A close that follows somebody else's write is not ours.
func TestLedgerStranger(t *testing.T) {
	l := newLedger()
	l.expect(testDir, "f", notify.CloseWrite)()
	if !l.is(notify.OpCloseWrite, "f") || l.is(notify.OpModify, "f") || l.is(notify.OpCloseWrite, "f") {
		t.Error("want: our close, their write, their close")
	}
}

// Of an event that is known to be our file server's, any operation on the name is the reason.
func TestLedgerLoose(t *testing.T) {
	l := newLedger()
	loose := func(op notify.Op, name string) bool {
		return l.explains(came(op, name), testDir, notify.Object{}, true)
	}
	if loose(notify.OpModify, "f") {
		t.Error("who uses the share without us is taken for us")
	}
	l.expect(testDir, "f", notify.Create)
	if !loose(notify.OpModify, "f") || loose(notify.OpModify, "g") {
		t.Error("want f explained and g not")
	}
}

func TestLedgerBounded(t *testing.T) {
	l := newLedger()
	for i := range ledgerLimit + 100 {
		l.expect(testDir, string(rune(i)), notify.Create)()
	}
	if l.len() > ledgerLimit {
		t.Errorf("%d operations are kept", l.len())
	}
	for range 1000 {
		l.expect(testDir, "log", notify.Modify)()
	}
	if n := len(l.at[entryKey{testDir, "log"}]); n != 1 {
		t.Errorf("writes to one file are %d operations", n)
	}
	l.clear()
	if l.len() != 0 || l.is(notify.OpModify, "log") {
		t.Error("something is left after clear")
	}
}

func TestOlderThan(t *testing.T) {
	for _, c := range []struct {
		have, want int64
		older      bool
	}{
		{5_123456789, 5_123456789, false}, {5_123456788, 5_123456789, true}, {6_000000000, 5_123456789, false},
		{5_000000000, 5_123456789, false}, // a share that has seconds only
		{5_123456000, 5_123456789, false}, {5_123455000, 5_123456789, true},
	} {
		if got := olderThan(statAt(c.have), notify.State{Ctime: c.want}); got != c.older {
			t.Errorf("%d older than %d: %t", c.have, c.want, got)
		}
	}
}

func statAt(ctime int64) *unix.Stat_t { return &unix.Stat_t{Ctim: unix.NsecToTimespec(ctime)} }
