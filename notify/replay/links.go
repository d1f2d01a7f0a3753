package replay

import (
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

// linkCounts pairs an ATTRIB that has no name with the link, unlink or rename that
// caused it. The replayed operation fires that ATTRIB itself; only where the
// operation was in a directory that the guest does not know is it replayed alone.
type linkCounts struct {
	pending []pendingLink
	// covered holds objects whose operation was replayed and whose ATTRIB is still to come.
	covered map[notify.Object]time.Time
}

type pendingLink struct {
	obj notify.Object
	at  time.Time
}

// coveredLife bounds how long an operation waits for its ATTRIB.
const coveredLife = 200 * time.Millisecond

func (l *linkCounts) init() { l.covered = make(map[notify.Object]time.Time) }

// add takes an OpLinkCount.
func (l *linkCounts) add(obj notify.Object, now time.Time) {
	if at, ok := l.covered[obj]; ok {
		delete(l.covered, obj)
		if now.Sub(at) < coveredLife {
			return
		}
	}
	for _, p := range l.pending {
		if p.obj == obj {
			return
		}
	}
	l.pending = append(l.pending, pendingLink{obj, now})
}

// cover says that an operation which changed obj's link count was replayed. The
// kernel queues the ATTRIB before a link's CREATE and an unlink's DELETE (before),
// but after the RENAME that replaced a file.
func (l *linkCounts) cover(obj notify.Object, before bool) {
	if obj.IsZero() {
		return
	}
	for i, p := range l.pending {
		if p.obj == obj {
			l.pending = append(l.pending[:i], l.pending[i+1:]...)
			return
		}
	}
	if before {
		return
	}
	now := time.Now()
	if len(l.covered) > 1024 {
		for o, at := range l.covered {
			if now.Sub(at) > coveredLife {
				delete(l.covered, o)
			}
		}
	}
	l.covered[obj] = now
}

// timeout says how long the replayer may sleep before flush has work; zero means for ever.
func (l *linkCounts) timeout(now time.Time, wait time.Duration) time.Duration {
	if len(l.pending) == 0 {
		return 0
	}
	return max(l.pending[0].at.Add(wait).Sub(now), time.Microsecond)
}

// flush replays those that nothing has covered in time.
func (l *linkCounts) flush(r *Replayer, now time.Time, all bool) {
	for len(l.pending) > 0 && (all || now.Sub(l.pending[0].at) >= r.cfg.PairWait) {
		obj := l.pending[0].obj
		l.pending = l.pending[1:]
		if n := r.object(obj, stagingID); n != nil && !n.isDir() {
			r.linkCount(n)
		}
	}
	if len(l.pending) == 0 {
		l.pending = nil
	}
}
