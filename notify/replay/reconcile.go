package replay

import (
	"cmp"
	"log/slog"
	"maps"
	"slices"
	"sort"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

const (
	// clockSlack covers the kernel's coarse file time stamps.
	clockSlack = 50 * time.Millisecond
	// lossPatience is how long the events behind an overflow may go on coming
	// before the comparison starts all the same.
	lossPatience = 2 * time.Second
	// toldLimit bounds the memory of what comparing has told.
	toldLimit = 1 << 16
)

// reconciler makes up for events that were lost, and checks names about which the
// kernel may have merged something.
//
// After an overflow the events still in the queue are passed over until it has been
// read to its end; then every directory that the guest knows is compared with the host,
// and the differences are replayed. Whatever the comparison told and an event
// tells once more is told once.
type reconciler struct {
	lost  bool
	since time.Time // everything up to here was delivered
	at    time.Time // when the loss was seen
	names map[nameKey]struct{}
	// checks are names of a burst whose events did not name objects: the events were
	// right, but which object is at the name may be known wrongly.
	checks map[nameKey]struct{}
	// dead are objects that the host has no more. Their deletes make the guest see the same,
	// unless the kernel merged the records of several links.
	dead map[notify.Object]struct{}
	// calmAt is when names may be compared, if nothing comes before.
	calmAt time.Time
	told   map[nameKey]notify.Op
}

// overflow takes note of a loss; idle does the work.
func (c *reconciler) overflow(r *Replayer, ev *notify.Event) {
	r.stats.Overflows.Add(1)
	if !c.lost {
		c.lost, c.since, c.at = true, ev.Time.Add(-clockSlack), time.Now()
		r.log.Warn("events were lost; comparing when the queue is empty", slog.Time("since", c.since))
	}
}

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
	clear(c.dead)
}

// swallow reports whether ev is not to be replayed: it is behind a loss, or
// comparing has told it.
func (c *reconciler) swallow(r *Replayer, ev *notify.Event) bool {
	if c.lost {
		if ev.Op == notify.OpOverflow {
			return true
		}
		if time.Since(c.at) < lossPatience {
			return true
		}
		c.reconcile(r)
	}
	if len(c.told) == 0 {
		return false
	}
	switch ev.Op {
	case notify.OpCreate, notify.OpDelete:
		return c.heard(r, ev.Dir, ev.Name, ev.Op)
	case notify.OpRename:
		from := c.heard(r, ev.Dir, ev.Name, notify.OpDelete)
		to := c.heard(r, ev.NewDir, ev.NewName, notify.OpCreate)
		return from && (to || ev.NewDir.IsZero()) || to && ev.Dir.IsZero()
	}
	return false
}

func (c *reconciler) heard(r *Replayer, dir notify.Object, name string, op notify.Op) bool {
	if dir.IsZero() {
		return false
	}
	var all bool
	r.idC = r.tree.NodeIDs(r.idC[:0], dir)
	for _, p := range r.idC {
		k := nameKey{p, name}
		all = c.told[k] == op
		delete(c.told, k)
	}
	return all
}

// calm is how long nothing may have happened before names are verified: what is
// found on the host must not be ahead of the events.
const calm = 5 * time.Millisecond

// timeout is how long the replayer may sleep before pause has work; zero is for ever.
func (c *reconciler) timeout() time.Duration {
	if len(c.names) == 0 && len(c.checks) == 0 && len(c.dead) == 0 {
		return 0
	}
	return max(time.Until(c.calmAt), time.Microsecond)
}

// pause runs after each batch. idle says that the source had nothing more when the batch
// was taken; sync that somebody waits for all to be told.
func (c *reconciler) pause(r *Replayer, idle, sync bool) {
	if c.lost && (idle || sync) {
		c.reconcile(r)
	}
	if idle {
		c.calmAt = time.Now().Add(calm)
	}
	if time.Now().Before(c.calmAt) && !(sync && r.q.len() == 0) {
		if len(c.checks) >= toldLimit {
			c.settle(r, true) // too soon costs questions only
		}
		return
	}
	c.compare(r)
	c.bury(r)
	c.settle(r, sync)
}

// compare looks at the names that are to be verified.
func (c *reconciler) compare(r *Replayer) {
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
	c.tell(r, &d)
}

// reconcile compares all that the guest knows with the host.
func (c *reconciler) reconcile(r *Replayer) {
	c.lost = false
	started := time.Now()
	d := diff{since: c.since}
	for _, id := range r.view.dirs() {
		d.dir(r, id)
	}
	n := c.tell(r, &d)
	r.log.Info("comparison done", slog.Int("events", n), slog.Duration("took", time.Since(started)))
}

// tell replays the differences and returns how many there were.
func (c *reconciler) tell(r *Replayer, d *diff) int {
	events := d.events(r)
	if c.told == nil || len(c.told) > toldLimit {
		c.told = make(map[nameKey]notify.Op)
	}
	for i := range events {
		ev := &events[i]
		r.stats.Reconciled.Add(1)
		r.replay(ev)
		c.mark(r, ev.Dir, ev.Name, map[notify.Op]notify.Op{
			notify.OpCreate: notify.OpCreate, notify.OpDelete: notify.OpDelete, notify.OpRename: notify.OpDelete}[ev.Op])
		if ev.Op == notify.OpRename {
			c.mark(r, ev.NewDir, ev.NewName, notify.OpCreate)
		}
	}
	return len(events)
}

func (c *reconciler) mark(r *Replayer, dir notify.Object, name string, op notify.Op) {
	if op == 0 {
		return
	}
	for _, p := range r.tree.NodeIDs(nil, dir) {
		c.told[nameKey{p, name}] = op
	}
}

// found is a name on one side of the comparison.
type found struct {
	parent uint64
	name   string
	node   uint64
	isDir  bool
	depth  int
}

// diff collects what differs between the guest's view and the host.
type diff struct {
	since   time.Time
	gone    []found // the guest knows it, the host has it no more
	added   []found // the host has it, the guest does not know it
	changed []notify.Event
}

func (d *diff) recent(sec uint64, nsec uint32) bool {
	return !time.Unix(int64(sec), int64(nsec)).Before(d.since)
}

// name compares a single name.
func (d *diff) name(r *Replayer, parent uint64, name string) {
	var out fuse.EntryOut
	exists := r.tree.Obtain(notify.Object{}, parent, name, &out).Ok()
	if exists {
		defer r.far.Forget(out.NodeId, 1)
	}
	now, _ := r.view.lookup(parent, name)
	isDir := out.Attr.Mode&unix.S_IFMT == unix.S_IFDIR
	if exists && now != nil && now.isGhost() && now.isDir() == isDir {
		return
	}
	depth := r.view.depth(parent)
	if now != nil && (!exists || now.id != out.NodeId) {
		d.gone = append(d.gone, found{parent, name, now.id, now.isDir(), depth})
	}
	if exists && (now == nil || now.id != out.NodeId) {
		d.added = append(d.added, found{parent, name, out.NodeId, isDir, depth})
	}
}

// dir compares one directory.
func (d *diff) dir(r *Replayer, id uint64) {
	var self fuse.Attr
	alive := r.tree.Attr(id, &self).Ok()
	touched := alive && d.recent(self.Mtime, self.Mtimensec)
	depth := r.view.depth(id)
	obj, _ := r.tree.Object(id)
	seen := r.view.names(id)
	if alive {
		r.far.InvalInode(id, 0, 0)
		r.tree.Names(id, func(name string, _ bool) bool {
			d.entry(r, id, obj, name, seen, touched, depth)
			delete(seen, name)
			return true
		})
	}
	for name, s := range seen {
		g := found{parent: id, name: name, isDir: s.isDir, depth: depth}
		if s.node != nil {
			g.node = s.node.id
		}
		d.gone = append(d.gone, g)
	}
}

func (d *diff) entry(r *Replayer, id uint64, obj notify.Object, name string, seen map[string]seenName, touched bool, depth int) {
	var out fuse.EntryOut
	if !r.tree.Obtain(notify.Object{}, id, name, &out).Ok() {
		return
	}
	defer r.far.Forget(out.NodeId, 1)
	a := &out.Attr
	isDir := a.Mode&unix.S_IFMT == unix.S_IFDIR
	changed := d.recent(a.Ctime, a.Ctimensec)
	written := d.recent(a.Mtime, a.Mtimensec)
	child := notify.Object{}
	if o, ok := r.tree.Object(out.NodeId); ok {
		child = o
	}
	tell := func(op notify.Op) {
		d.changed = append(d.changed, notify.Event{Op: op, Dir: obj, Name: name, Object: child, IsDir: isDir})
	}
	was, known := seen[name]
	n := was.node
	if known && n == nil && (changed || written) {
		// Only ever listed: it may be another one by now, but nobody holds the old one.
		r.far.InvalEntry(id, name, true)
	}
	switch {
	case n != nil && (n.id == out.NodeId || n.isGhost() && n.isDir() == isDir) || known && n == nil:
		if !changed {
			return
		}
		if isDir {
			tell(notify.OpAttrib)
			return
		}
		r.far.InvalInode(out.NodeId, 0, -1)
		if written {
			tell(notify.OpModify)
			tell(notify.OpCloseWrite)
		} else {
			tell(notify.OpAttrib)
		}
	case n != nil:
		d.gone = append(d.gone, found{id, name, n.id, n.isDir(), depth})
		d.added = append(d.added, found{id, name, out.NodeId, isDir, depth})
	case touched:
		r.far.InvalEntry(id, name, true)
		if changed {
			d.added = append(d.added, found{id, name, out.NodeId, isDir, depth})
		}
	case changed && written && !isDir:
		tell(notify.OpModify)
	}
}

// events turns the differences into events in an order that could have happened.
func (d *diff) events(r *Replayer) []notify.Event {
	to := make(map[uint64]int, len(d.added))
	for i, a := range d.added {
		to[a.node] = i
	}
	var out []notify.Event
	object := func(id uint64) notify.Object { o, _ := r.tree.Object(id); return o }
	created := make([]bool, len(d.added))
	var gone []found
	type move struct{ from, to found }
	var moves []move
	for _, g := range d.gone {
		if i, ok := to[g.node]; ok && !created[i] {
			created[i] = true
			moves = append(moves, move{g, d.added[i]})
			continue
		}
		gone = append(gone, g)
	}
	// A name is free for a move once its old node has been moved away.
	for len(moves) > 0 {
		held := make(map[nameKey]bool, len(moves))
		for _, m := range moves {
			held[nameKey{m.from.parent, m.from.name}] = true
		}
		var rest []move
		for _, m := range moves {
			if held[nameKey{m.to.parent, m.to.name}] {
				rest = append(rest, m)
				continue
			}
			out = append(out, notify.Event{Op: notify.OpRename, Dir: object(m.from.parent), Name: m.from.name,
				NewDir: object(m.to.parent), NewName: m.to.name, Object: object(m.from.node), IsDir: m.from.isDir})
			gone = without(gone, m.to)
		}
		if len(rest) == len(moves) {
			m := rest[0]
			gone = append(gone, m.from)
			created[to[m.to.node]] = false
			rest = rest[1:]
		}
		moves = rest
	}
	sort.SliceStable(gone, func(i, j int) bool { return gone[i].depth > gone[j].depth })
	for _, g := range gone {
		out = append(out, notify.Event{Op: notify.OpDelete, Dir: object(g.parent), Name: g.name, Object: object(g.node), IsDir: g.isDir})
	}
	for i, a := range d.added {
		if !created[i] {
			out = append(out, notify.Event{Op: notify.OpCreate, Dir: object(a.parent), Name: a.name, Object: object(a.node), IsDir: a.isDir})
		}
	}
	return append(out, d.changed...)
}

// without drops the name that a move replaces: its delete is part of the move.
func without(gone []found, at found) []found {
	for i, g := range gone {
		if g.parent == at.parent && g.name == at.name {
			return append(gone[:i], gone[i+1:]...)
		}
	}
	return gone
}
