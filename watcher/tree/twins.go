//go:build linux

package tree

import "github.com/heraldfs/heraldfs/notify"

const (
	// maxApart is how far apart the two renames of an exchange are looked for.
	maxApart = 16
	// maxLooks bounds how often the first of them waits for what has been queued behind it.
	maxLooks = 8
)

// twins are a rename and one straight back, of objects that the backend cannot tell: both
// together may be an exchange. Then there is something at the other name afterwards.
type twins struct {
	there  bool // at the name that the first renamed to
	looked bool
	looks  int
	// decided once it is known whether they are an exchange, which swap says.
	decided, swap bool
}

// pair finds the twins among the events from position from on.
func (e *engine) pair(from int) {
	for j := from; j < len(e.buf); j++ {
		back := &e.buf[j].ev
		if back.Op != notify.OpRename || !back.Verify || !back.Object.IsZero() {
			continue
		}
		for i := j - 1; i >= max(0, j-maxApart); i-- {
			first := &e.buf[i]
			if first.ev.Op == notify.OpRename && first.ev.IsDir == back.IsDir &&
				first.ev.Dir == back.NewDir && first.ev.Name == back.NewName &&
				first.ev.NewDir == back.Dir && first.ev.NewName == back.Name {
				if first.twins == nil && first.first == nil {
					first.twins = &twins{}
					e.buf[j].first = first.twins
				}
				break
			}
		}
	}
}

// lookAtTwins looks for what is at the other name now.
func (e *engine) lookAtTwins(it *item) {
	t := it.twins
	t.there, t.looked = e.exists(it.ev.NewDir, it.ev.NewName)
	t.looks++
}

// exchanged reports whether the twins that begin at e.buf[i] are an exchange. It is open as long as that
// depends on others behind them, which nobody has looked at yet.
func (e *engine) exchanged(i int) (yes, open bool) {
	var chain []*twins
	for t := e.buf[i].twins; !t.decided; {
		chain = append(chain, t)
		ev, second := &e.buf[i].ev, i+1
		for second < len(e.buf) && e.buf[second].first != t {
			second++
		}
		c, changed := firstAfter(e.entries().byDir[ev.NewDir][ev.NewName], second)
		if changed && c.appears && e.buf[c.at].twins != nil {
			// The same once more: if that was an exchange, this was one.
			i, t = c.at, e.buf[c.at].twins
			continue
		}
		if !changed && !t.looked {
			return false, true
		}
		t.swap = changed && !c.appears || !changed && t.there // it has gone from there later, or is still there
		t.decided = true
	}
	for _, t := range chain {
		t.decided, t.swap = true, e.buf[i].twins.swap
	}
	return e.buf[i].twins.swap, false
}

// completeTwins lets e.buf[i] wait once more if others behind it decide.
func (e *engine) completeTwins(i int) {
	it := &e.buf[i]
	if _, open := e.exchanged(i); !open || it.twins.looks >= maxLooks {
		return
	}
	it.twins.looks++
	for j := i + 1; j < len(e.buf); j++ {
		if next := &e.buf[j]; next.twins != nil && !next.twins.looked {
			e.lookAtTwins(next)
		}
	}
	it.armed, it.passed = false, false
}

// applyTwins tells the twins that begin at e.buf[i] if they are an exchange.
func (e *engine) applyTwins(i int) bool {
	it := &e.buf[i]
	yes, _ := e.exchanged(i)
	if !yes {
		return false
	}
	ev := it.ev
	ev.Op, ev.NewIsDir, ev.Verify = notify.OpExchange, ev.IsDir, false
	e.applyExchange(&ev)
	return true
}
