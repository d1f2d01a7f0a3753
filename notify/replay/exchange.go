package replay

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/heraldfs/heraldfs/notify"
)

const (
	// exchangeReach is how many events behind the first half of an exchange the second
	// one is looked for: the kernel queues them back to back, but other CPUs queue too.
	exchangeReach = 16
	// exchangeWait is how long it may take to be read.
	exchangeWait = 500 * time.Microsecond
	// exchangeFar is how long it may take to come from another machine, or from a process that has to be scheduled.
	exchangeFar = 20 * time.Millisecond
)

// pairExchange looks for the second half of an exchange behind the rename at i. A reader that is
// fast enough finds the halves in two batches, and inotify tells an exchange as
// two renames, as it does a rename and its way back. Found, the first half becomes
// an OpExchange and the second nothing.
func (r *Replayer) pairExchange(t *taken, i int) {
	ev := &t.events[i]
	if ev.Dir.IsZero() || ev.NewDir.IsZero() {
		return
	}
	if r.joinExchange(t.events, i) || i+1 < len(t.events) || !r.mayBeExchange(ev) {
		return
	}
	patience := exchangeWait
	if ev.Remote != nil {
		patience = exchangeFar
	}
	for end := time.Now().Add(patience); ; {
		n := len(t.events)
		r.await(t, time.Until(end))
		if len(t.events) == n {
			return
		}
		r.ahead.reset(t.events[i+1:])
		r.ahead.shift(i + 1)
		if r.joinExchange(t.events, i) || len(t.events) > i+exchangeReach {
			return
		}
	}
}

// await lets what comes within patience join the batch. That somebody waits, or that the source
// has read its queue to the end, is no event.
func (r *Replayer) await(t *taken, patience time.Duration) {
	end := time.Now().Add(patience)
	for n := len(t.events); len(t.events) == n; {
		left := time.Until(end)
		if left <= 0 {
			return
		}
		more, ok := r.q.take(nil, left)
		if !ok {
			return
		}
		r.found.add(more.found, n)
		t.events = append(t.events, more.events...)
		t.waiters = append(t.waiters, more.waiters...)
		if len(more.events) > 0 || more.idle {
			t.idle = more.idle
		}
	}
}

func (r *Replayer) joinExchange(events []notify.Event, i int) bool {
	ev := &events[i]
	for j := i + 1; j < len(events) && j <= i+exchangeReach; j++ {
		back := &events[j]
		if back.Op == notify.OpRename && back.Dir == ev.NewDir && back.Name == ev.NewName &&
			back.NewDir == ev.Dir && back.NewName == ev.Name {
			if ev.Object.IsZero() {
				// inotify merges nothing: what there is to doubt is decided here.
				ev.Verify, back.Verify = false, false
			}
			swapped := r.swapped(ev, back, j)
			if !swapped {
				return false
			}
			ev.Op, ev.NewObject, ev.NewIsDir = notify.OpExchange, back.Object, back.IsDir
			ev.Verify = ev.Verify || back.Verify
			back.Op = 0
			return true
		}
		// The kernel holds both directories from the first half to the second.
		if touches(back, ev.Dir) || touches(back, ev.NewDir) {
			return false
		}
		// Without objects, anything told of the directories in between speaks for two renames.
		if ev.Object.IsZero() && (back.Dir == ev.Dir || back.Dir == ev.NewDir) {
			return false
		}
	}
	return false
}

// touches reports whether ev changes a name in dir.
func touches(ev *notify.Event, dir notify.Object) bool {
	switch ev.Op {
	case notify.OpCreate, notify.OpDelete, notify.OpRename, notify.OpExchange:
		return ev.Dir == dir || ev.NewDir == dir
	}
	return false
}

// swapped tells an exchange from a rename over a file and back. Either the source names
// objects, and the two are different ones; or what the guest knows of the names is
// compared with where it is now.
func (r *Replayer) swapped(ev, back *notify.Event, i int) bool {
	if !ev.Object.IsZero() && !back.Object.IsZero() {
		return ev.Object != back.Object
	}
	as, bs := r.nodes(ev.Dir, ev.NewDir)
	if len(as) == 0 || as[0] == 0 || bs[0] == 0 {
		return false
	}
	a, b := as[0], bs[0]
	_, src := r.view.lookup(a, ev.Name)
	_, victim := r.view.lookup(b, ev.NewName)
	if r.ahead.later(i, ev.Dir, ev.Name) || r.ahead.later(i, ev.NewDir, ev.NewName) {
		// What is there now says nothing. A file replaced and its replacement moved
		// back at once is rare; should it be that, the names are looked at again
		// when all is calm.
		return true
	}
	atOld, atNew := r.hostNode(a, ev.Name), r.hostNode(b, ev.NewName)
	switch {
	case known(victim) && atOld == victim.id:
		return true
	case known(src):
		return atOld != src.id && (atOld != 0 || atNew == src.id)
	case known(victim):
		return false
	}
	return atOld != 0 && atNew != 0
}

func known(n *vnode) bool { return n != nil && !n.isGhost() }

// hostNode returns the nodeid of what parent/name is on the host now, or zero.
func (r *Replayer) hostNode(parent uint64, name string) uint64 {
	var out fuse.EntryOut
	if !r.tree.Obtain(notify.Object{}, parent, name, &out).Ok() {
		return 0
	}
	r.far.Forget(out.NodeId, 1)
	return out.NodeId
}

// mayBeExchange reports whether something is still, or again, at the name that ev moved away.
func (r *Replayer) mayBeExchange(ev *notify.Event) bool {
	if r.found.vacant() {
		return false
	}
	ids, _ := r.nodes(ev.Dir, notify.Object{})
	if len(ids) == 0 || ids[0] == 0 {
		return false
	}
	return r.hostNode(ids[0], ev.Name) != 0
}
