package replay

import (
	"errors"
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

// emit runs in the source's thread: it keeps what the guest can know of.
func (r *Replayer) emit(events []notify.Event) {
	kept := r.emitKept[:0]
	for i := range events {
		ev := events[i]
		if int(ev.Op) < len(r.stats.Heard) {
			r.stats.Heard[ev.Op].Add(1)
		}
		r.places.saw(&ev)
		switch {
		case ev.Op == notify.OpOverflow:
			// Everything up to the last time the queue was empty has come.
			ev.Time = r.drainedAt
		case r.hints == nil || ev.Object.IsZero():
		case ev.Op == notify.OpDelete && ev.IsDir:
			r.hints.Drop(ev.Object)
		case ev.Op == notify.OpRename && !ev.NewDir.IsZero():
			r.hints.Moved(ev.Object, ev.NewDir, ev.NewName)
		}
		if r.interesting(&ev, events[i+1:]) {
			kept = append(kept, ev)
		} else {
			r.stats.Dropped.Add(1)
		}
	}
	drained := len(events) < drainedBatch
	if drained {
		r.drainedAt = time.Now()
		if len(events) > 0 {
			r.drainedAt = events[len(events)-1].Time
		}
	}
	if r.cfg.Agents != nil {
		if errors.Is(r.q.put(kept, nil, drained), notify.ErrOverflow) {
			r.view.quiet(true)
		}
		r.stats.Backlog.Store(int64(r.q.len()))
	} else {
		r.stats.Backlog.Add(int64(len(kept)))
		r.q.put(kept, r.scoutBatch(kept), drained)
	}
	clear(kept)
	r.emitKept = kept
}

// interesting reports whether the guest's kernel holds anything that ev concerns. behind is
// what was read after it.
func (r *Replayer) interesting(ev *notify.Event, behind []notify.Event) bool {
	if ev.Op == notify.OpOverflow || ev.Remote != nil {
		return true // or not known before its turn
	}
	known := func(o notify.Object) bool {
		if o.IsZero() {
			return false
		}
		r.emitIDs = r.cfg.Tree.NodeIDs(r.emitIDs[:0], o)
		return len(r.emitIDs) > 0
	}
	if known(ev.Dir) || known(ev.NewDir) || known(ev.Object) {
		return true
	}
	if ev.Name == "." && ev.IsDir {
		// ATTRIB of a directory that the guest does not know, but its parent it may.
		at, ok := r.whereIs(ev.Dir, behind)
		if ok && known(at.dir) {
			ev.Object, ev.Dir, ev.Name = ev.Dir, at.dir, at.name
			return true
		}
	}
	return false
}

// whereIs tells where a directory was when an event about it was queued.
func (r *Replayer) whereIs(dir notify.Object, behind []notify.Event) (placeRef, bool) {
	if at, ok := r.places.get(dir); ok {
		return at, true
	}
	for i := range behind {
		if b := &behind[i]; b.Object == dir && (b.Op == notify.OpDelete || b.Op == notify.OpRename) {
			return placeRef{b.Dir, b.Name}, true
		}
	}
	parent, name, err := r.cfg.Tree.Locate(dir)
	return placeRef{parent, name}, err == nil
}
