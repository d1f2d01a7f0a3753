package replay

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

func (r *Replayer) move(p, np uint64, ev *notify.Event) {
	name, newName := ev.Name, ev.NewName
	// A directory that the guest takes for removed is no place to go to or to come from.
	if !r.view.reachable(p) {
		p = 0
	}
	if !r.view.reachable(np) {
		np = 0
	}
	near := max(p, np)
	if near == 0 {
		near = stagingID
	}
	known := r.object(ev.Object, near)
	if known == nil && ev.Object.IsZero() {
		if p != 0 {
			_, known = r.view.lookup(p, name)
		}
		if (known == nil || known.isGhost()) && ev.Op == notify.OpRename {
			if n := r.arrived(ev, np); n != nil {
				known = n
			}
		}
	}
	if p == 0 {
		p, name = stagingID, r.stage(known)
	}
	if np == 0 {
		np, newName = stagingID, r.stage(nil)
	}
	if p == stagingID && np == stagingID && known == nil {
		r.stats.Dropped.Add(1)
		return
	}
	super := r.view.superAt(p, np, known)
	exchange := ev.Op == notify.OpExchange
	var victim *vnode
	ok := r.run(ev, func(attempt int) *step {
		s := &step{op: opMove, exchange: exchange}
		s.src = side{parent: p, name: name}
		s.dst = side{parent: np, name: newName}
		now, before := r.view.lookup(p, name)
		n := known
		if n == nil && before != nil && before.isGhost() {
			n = before
		}
		if n == nil || n.isDir() != ev.IsDir {
			n = r.view.ghost(ev.IsDir)
		}
		s.src.node = n
		if now != nil && now != n || attempt > 0 {
			r.expire(p, name)
		}
		_, other := r.view.lookup(np, newName)
		switch {
		case exchange:
			s.dst.node = r.otherSide(ev, np, other, n)
		case np != stagingID && other != nil && other != n && other.isDir() == n.isDir():
			s.dst.node = other
			r.before(&s.dst)
			if other.isDir() {
				r.dirs.dropTree(other)
			}
		}
		victim = s.dst.node
		return s
	}, func(s *step) error {
		dir, err := r.dirs.openIn(p, super)
		if err != nil {
			return err
		}
		newDir, err := r.dirs.openIn(np, super)
		if err != nil {
			return err
		}
		call := notify.Call{Op: notify.CallRename, Dir: dir, Name: name, NewDir: newDir, NewName: newName}
		if exchange {
			call.Mode = unix.RENAME_EXCHANGE
		}
		return r.dirs.perform(call)
	})
	if ok {
		r.follow(known, ev, np)
	}
	if ok && victim != nil && !exchange && !victim.isGhost() && !victim.isDir() {
		if obj, has := r.tree.Object(victim.id); has {
			r.links.cover(obj, false)
		}
	}
}

// follow keeps hearing of a file that moved to where the source has no watch.
func (r *Replayer) follow(n *vnode, ev *notify.Event, np uint64) {
	if r.cfg.Files == nil || n == nil || n.isGhost() || n.isDir() {
		return
	}
	obj, ok := r.tree.Object(n.id)
	if !ok {
		return
	}
	if np != stagingID {
		r.far.Unfollow(obj)
		return
	}
	err := r.far.Follow(obj, n.id)
	if errors.Is(err, unix.ESTALE) {
		// It is gone already, and its end is all that there is to tell.
		r.links.add(obj, ev.Time)
		return
	}
	if err != nil {
		r.stats.setLast("follow " + ev.String() + ": " + err.Error())
		r.log.Debug("a file that left the known directories is not watched", "error", err)
	}
}

// arrived finds, for a source that does not name objects, what is now at the place to which
// something unknown was moved, if the guest knows it by another name.
func (r *Replayer) arrived(ev *notify.Event, np uint64) *vnode {
	if !ev.Object.IsZero() || np == 0 || np == stagingID {
		return nil
	}
	var out fuse.EntryOut
	if !r.obtain(notify.Object{}, ev.NewDir, np, ev.NewName, &out) {
		return nil
	}
	defer r.far.Forget(out.NodeId, 1)
	if n := r.view.node(out.NodeId); n != nil && n.isDir() == ev.IsDir {
		return n
	}
	return nil
}

// otherSide finds what an exchange swapped n with.
func (r *Replayer) otherSide(ev *notify.Event, np uint64, other, n *vnode) *vnode {
	if o := r.object(ev.NewObject, np); o != nil && o != n {
		return o
	}
	if other != nil && other != n && np != stagingID && other.isDir() == ev.NewIsDir && (ev.NewObject.IsZero() || other.isGhost()) {
		return other
	}
	return r.view.ghost(ev.NewIsDir)
}
