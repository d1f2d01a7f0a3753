package replay

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// verify asks for the names of ev to be compared when nothing is pending.
func (c *reconciler) verify(r *Replayer, ev *notify.Event) {
	if c.names == nil {
		c.names = make(map[nameKey]struct{})
	}
	add := func(dir notify.Object, name string) {
		if dir.IsZero() || name == "" || len(c.names) >= toldLimit {
			return
		}
		for _, p := range r.tree.NodeIDs(nil, dir) {
			c.names[nameKey{p, name}] = struct{}{}
		}
	}
	add(ev.Dir, ev.Name)
	add(ev.NewDir, ev.NewName)
}

// burst is the length from which on a batch without objects is checked: the host may be ahead of it.
const burst = 4

// check notes the names of ev for a look at which objects they are.
func (c *reconciler) check(r *Replayer, ev *notify.Event) {
	if c.checks == nil {
		c.checks = make(map[nameKey]struct{})
	}
	add := func(dir notify.Object, name string) {
		if dir.IsZero() || name == "" || name == "." {
			return
		}
		r.idC = r.tree.NodeIDs(r.idC[:0], dir)
		for _, p := range r.idC {
			c.checks[nameKey{p, name}] = struct{}{}
		}
	}
	add(ev.Dir, ev.Name)
	add(ev.NewDir, ev.NewName)
}

// settlePart is how many names are settled before the queue is looked at again.
const settlePart = 512

// settle makes the guest ask again for names that it may know wrongly. No event comes of it, and
// if there are events it can wait, unless all is to be done.
func (c *reconciler) settle(r *Replayer, all bool) {
	part := make([]nameKey, 0, min(settlePart, len(c.checks)))
	for len(c.checks) > 0 {
		part = part[:0]
		for k := range c.checks {
			part = append(part, k)
			delete(c.checks, k)
			if len(part) == settlePart {
				break
			}
		}
		r.far.serve.run(func() {
			for _, k := range part {
				r.settleName(k)
			}
		})
		if r.detached {
			for _, k := range part {
				c.checks[k] = struct{}{}
			}
			return
		}
		if !all && r.q.len() > 0 {
			return
		}
	}
}

// settleName is done by the servant.
func (r *Replayer) settleName(k nameKey) {
	var out fuse.EntryOut
	now, _ := r.view.lookup(k.parent, k.name)
	exists := r.cfg.Tree.Obtain(notify.Object{}, k.parent, k.name, &out).Ok()
	if exists {
		if n := r.view.node(out.NodeId); n != nil {
			r.refused(r.cfg.Notify.InvalInode(out.NodeId, 0, -1))
		}
	}
	ghost := now != nil && now.isGhost() && exists && now.isDir() == (out.Attr.Mode&unix.S_IFMT == unix.S_IFDIR)
	if !ghost && ((now == nil) == exists || now != nil && exists && now.id != out.NodeId) {
		r.view.doubt(k.parent, k.name)
		if k.parent != stagingID {
			r.refused(r.cfg.Notify.InvalEntry(k.parent, k.name, true))
		}
	}
	if exists {
		r.far.raw.Forget(out.NodeId, 1)
	}
}

// died notes that the last reference to an object is gone.
func (c *reconciler) died(obj notify.Object) {
	if obj.IsZero() || len(c.dead) >= toldLimit {
		return
	}
	if c.dead == nil {
		c.dead = make(map[notify.Object]struct{})
	}
	c.dead[obj] = struct{}{}
}

// bury ends what the guest still takes for alive.
func (c *reconciler) bury(r *Replayer) {
	for obj := range c.dead {
		n := r.object(obj, stagingID)
		if n == nil || n.isDir() || r.view.linksOf(n) == 0 {
			continue
		}
		// Names that the guest may still have for it are wrong by now.
		for _, e := range r.view.edges(n) {
			r.view.doubt(e.parent, e.name)
			r.expire(e.parent, e.name)
		}
		r.linkCount(n)
	}
	if !r.detached {
		clear(c.dead)
	}
}

// compare looks at the names that are to be verified.
func (c *reconciler) compare(r *Replayer, sync bool) {
	if len(c.names) == 0 {
		return
	}
	keys := slices.SortedFunc(maps.Keys(c.names), func(a, b nameKey) int {
		return cmp.Or(cmp.Compare(a.parent, b.parent), cmp.Compare(a.name, b.name))
	})
	clear(c.names)
	var d diff
	for _, k := range keys {
		d.name(r, k.parent, k.name)
	}
	if !sync && len(d.gone)+len(d.added) > 0 && !r.caughtUp() {
		// That nothing came does not mean that nothing happened: what was found may be ahead of
		// events that the source had no time to read.
		for _, k := range keys {
			c.names[k] = struct{}{}
		}
		c.calmAt = time.Now().Add(calm)
		return
	}
	c.tell(r, &d)
	if r.detached {
		for _, k := range keys {
			c.names[k] = struct{}{}
		}
	}
}

// catchUp bounds the wait for a source that is to read its queue. One that takes longer has something
// to tell.
const catchUp = 200 * time.Millisecond

// caughtUp has the source read its queue to the end, and reports whether there was nothing.
func (r *Replayer) caughtUp() bool {
	b, ok := r.cfg.Source.(notify.Barrier)
	if !ok {
		return true
	}
	var err error
	r.far.serve.run(func() {
		ctx, stop := context.WithTimeout(context.Background(), catchUp)
		defer stop()
		err = b.Barrier(ctx)
	})
	return err == nil && r.q.len() == 0
}
