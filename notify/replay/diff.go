package replay

import (
	"sort"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

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

// fairlyRecent is recent for what the guest does not know.
func (d *diff) fairlyRecent(sec uint64, nsec uint32) bool {
	return !time.Unix(int64(sec), int64(nsec)).Before(d.since.Add(clockSlack - strangerSlack))
}

// name compares a single name.
func (d *diff) name(r *Replayer, parent uint64, name string) {
	var out fuse.EntryOut
	st := r.tree.Obtain(notify.Object{}, parent, name, &out)
	exists := st.Ok()
	if !exists && st != fuse.ENOENT {
		return // it cannot be said
	}
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
	touched := alive && d.fairlyRecent(self.Mtime, self.Mtimensec)
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
			if n != nil && !isDir {
				// It can have changed a little before all the same.
				r.far.InvalInode(out.NodeId, 0, -1)
			}
			return
		}
		if isDir {
			// A name that came or went changes both times, and is told as such.
			if a.Ctime != a.Mtime || a.Ctimensec != a.Mtimensec || n != nil && r.view.rightsOf(n) != rightsOf(a) {
				tell(notify.OpAttrib)
			}
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
		if d.fairlyRecent(a.Ctime, a.Ctimensec) {
			d.added = append(d.added, found{id, name, out.NodeId, isDir, depth})
		}
	case changed && written && !isDir:
		tell(notify.OpModify)
	}
}

// move is an object that the guest knows by one name and the host has at another.
type move struct{ from, to found }

// events turns the differences into events in an order that could have happened.
func (d *diff) events(r *Replayer) []notify.Event {
	to := make(map[uint64]int, len(d.added))
	for i, a := range d.added {
		to[a.node] = i
	}
	object := func(id uint64) notify.Object { o, _ := r.tree.Object(id); return o }
	told := make([]bool, len(d.added))
	var gone []found
	var moves []move
	for _, g := range d.gone {
		if i, ok := to[g.node]; ok && !told[i] {
			told[i] = true
			moves = append(moves, move{g, d.added[i]})
			continue
		}
		gone = append(gone, g)
	}
	early, late, broken := order(moves, gone)
	for _, m := range broken {
		told[to[m.to.node]] = false
		gone = append(gone, m.from)
	}
	var out []notify.Event
	rename := func(m move) {
		out = append(out, notify.Event{Op: notify.OpRename, Dir: object(m.from.parent), Name: m.from.name,
			NewDir: object(m.to.parent), NewName: m.to.name, Object: object(m.from.node), IsDir: m.from.isDir})
	}
	for _, m := range early {
		rename(m)
		gone = without(gone, m.to)
	}
	sort.SliceStable(gone, func(i, j int) bool { return gone[i].depth > gone[j].depth })
	for _, g := range gone {
		out = append(out, notify.Event{Op: notify.OpDelete, Dir: object(g.parent), Name: g.name, Object: object(g.node), IsDir: g.isDir})
	}
	for _, m := range late {
		rename(m)
	}
	for i, a := range d.added {
		if !told[i] {
			out = append(out, notify.Event{Op: notify.OpCreate, Dir: object(a.parent), Name: a.name, Object: object(a.node), IsDir: a.isDir})
		}
	}
	return append(out, d.changed...)
}

// order has each move come after the one that makes room for it. Those to the name of something of
// another type, which has to be deleted first, are late, and so are those that wait for them. A
// circle is broken: one of its objects is told to be gone and made anew.
func order(moves []move, gone []found) (early, late, broken []move) {
	other := make(map[nameKey]bool) // is there a directory?
	for _, g := range gone {
		other[nameKey{g.parent, g.name}] = g.isDir
	}
	heldLate := make(map[nameKey]bool)
	for len(moves) > 0 {
		held := make(map[nameKey]bool, len(moves))
		for _, m := range moves {
			held[nameKey{m.from.parent, m.from.name}] = true
		}
		var rest []move
		for _, m := range moves {
			at := nameKey{m.to.parent, m.to.name}
			isDir, taken := other[at]
			switch {
			case held[at]:
				rest = append(rest, m)
			case heldLate[at] || taken && isDir != m.from.isDir:
				late = append(late, m)
				heldLate[nameKey{m.from.parent, m.from.name}] = true
			default:
				early = append(early, m)
			}
		}
		if len(rest) == len(moves) {
			b := rest[0]
			broken, rest = append(broken, b), rest[1:]
			other[nameKey{b.from.parent, b.from.name}] = b.from.isDir
		}
		moves = rest
	}
	return early, late, broken
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
