package portable

import (
	"path/filepath"
	"strconv"
	"time"

	"github.com/fsnotify/fsnotify"
)

// left handles the first half of a rename: a name that has gone.
func (e *engine) left(h *hint, i int, now time.Time) time.Duration {
	k := e.known(h.name)
	if k == nil {
		e.doubtUnknown(h.name)
		return 0
	}
	if k.top != nil {
		if !look(h.name).id.is(k.state.id) {
			e.rootGone(k.top, h.at)
		}
		return 0
	}
	j := e.partner(h, k, i)
	if j < 0 {
		if wait := e.patience(h, i, now); wait > 0 {
			return wait
		}
		e.alone(h, k)
		return 0
	}
	c := &e.buf[j]
	c.done = true
	e.renamed(h, k, c)
	return 0
}

// fenceWait bounds the wait for a fence that may have been lost in an overflow.
const fenceWait = 2 * time.Second

// patience says how long to wait for the other half of h, which is at position i. Time alone does not tell on a machine that
// stalls: where the system keeps an order, a fence that was made afterwards has to come without it.
func (e *engine) patience(h *hint, i int, now time.Time) time.Duration {
	if len(e.buf)-i >= lookAhead {
		return 0
	}
	if wait := h.at.Add(e.wait).Sub(now); wait > 0 {
		return wait
	}
	if !e.sys.olds {
		return 0
	}
	if h.fence == 0 {
		e.makeFence()
		h.fence = e.fenceMade
	}
	for _, c := range e.buf[i+1:] {
		if n, err := strconv.ParseUint(filepath.Base(c.raw), 10, 64); err == nil && n >= h.fence && filepath.Dir(c.raw) == e.fenceDir {
			return 0
		}
	}
	return h.at.Add(fenceWait).Sub(now)
}

// partner finds the other half of the rename of k among the notifications after position i; -1 is none.
func (e *engine) partner(h *hint, k *node, i int) int {
	end := min(len(e.buf), i+lookAhead)
	for j := i + 1; j < end; j++ {
		if c := &e.buf[j]; !c.done && c.from != "" && c.from == h.raw {
			return j
		}
	}
	if e.sys.olds {
		return -1
	}
	for j := i + 1; j < end; j++ {
		c := &e.buf[j]
		if c.done || c.from != "" || !c.op.Has(fsnotify.Create) {
			continue
		}
		if !c.looked {
			c.name = e.resolve(c.raw)
			c.looked, c.id = true, look(c.name).id
		}
		if other := e.known(c.name); c.id.is(k.state.id) && (other == nil || !other.state.id.is(c.id)) {
			return j
		}
	}
	return -1
}

// alone handles a half that has no other one.
func (e *engine) alone(h *hint, k *node) {
	s := look(h.name)
	if _, self := e.selves[h.raw]; self && s.id.is(k.state.id) {
		delete(e.selves, h.raw)
		return // the directory that was here before tells of its rename itself
	}
	if s.id.is(k.state.id) && (k.state.dir || k.ahead > e.fenceSeen || !e.sys.olds) {
		// It has come back, or the notification is an old one; if it is a directory, its watch is gone.
		if k.state.dir {
			e.again([]*node{k}, []string{h.name}, h.at)
		}
		return
	}
	if !h.op.Has(fsnotify.Rename) {
		e.removed(h)
		return
	}
	e.movedOut(k, h.at)
	if s.exists {
		e.doubt(h.name)
	}
}

func (e *engine) movedOut(k *node, at time.Time) {
	if root, path := k.place(); root >= 0 {
		e.emit(Event{Kind: Rename, IsDir: k.state.dir, Root: root, OldRoot: root, OldPath: path, Time: at})
	}
	e.drop(k)
	e.ruledAt(k.parent, k.name, at)
}

// renamed handles a rename of k, of which c is the second half.
func (e *engine) renamed(h *hint, k *node, c *hint) {
	c.name = e.resolve(c.raw)
	dir, name := e.find(c.name)
	if dir == nil || name == "" || dir.leftOut(name, k.state.dir) {
		e.movedOut(k, h.at)
		return
	}
	if dir == k || dir.isBelow(k) {
		// The paths are from different moments.
		e.doubt(h.name)
		e.doubt(c.name)
		return
	}
	was, is := look(h.name), look(c.name)
	other := dir.kids[name]
	if other == k {
		return
	}
	if other != nil && other.state.id.is(is.id) && k.state.id.is(was.id) {
		return // the second half of an exchange, which was told
	}
	if other != nil && other.state.id.is(was.id) && k.state.id.is(is.id) {
		e.exchange(k, other, h.at)
		return
	}
	oldRoot, oldPath := k.place()
	oldAbs := k.path()
	oldName, from := k.name, k.parent
	if other != nil {
		e.drop(other)
	}
	k.take()
	k.put(dir, name)
	k.ahead = 0
	root, path := k.place()
	e.emit(Event{Kind: Rename, IsDir: k.state.dir, Root: root, Path: path, OldRoot: oldRoot, OldPath: oldPath, Time: h.at})
	e.ruledAt(from, oldName, h.at)
	e.ruledAt(dir, name, h.at)
	if was.exists {
		e.doubt(h.name) // an exchange looks like a rename and one back
	}
	switch {
	case is.id.is(k.state.id):
		if !k.state.dir {
			k.state = is
		}
	case e.adopt(k, is, h.at):
		return
	default:
		e.doubt(c.name)
	}
	if k.state.dir {
		e.again([]*node{k}, []string{oldAbs}, h.at)
	}
}

// exchange handles a and b having changed places.
func (e *engine) exchange(a, b *node, at time.Time) {
	root, path := b.place()
	oldRoot, oldPath := a.place()
	e.emit(Event{Kind: Exchange, IsDir: a.state.dir, Root: root, Path: path, OldRoot: oldRoot, OldPath: oldPath, Time: at})
	aPath, bPath := a.path(), b.path()
	ap, an, bp, bn := a.parent, a.name, b.parent, b.name
	a.take()
	b.take()
	a.put(bp, bn)
	b.put(ap, an)
	var dirs []*node
	var olds []string
	for _, side := range []struct {
		n   *node
		old string
	}{{a, aPath}, {b, bPath}} {
		if side.n.state.dir {
			dirs, olds = append(dirs, side.n), append(olds, side.old)
		}
	}
	e.again(dirs, olds, at)
}

func (n *node) isBelow(other *node) bool {
	for ; n != nil; n = n.parent {
		if n == other {
			return true
		}
	}
	return false
}

// again watches directories, which had other paths, and all below them anew, and compares them with the table.
func (e *engine) again(dirs []*node, olds []string, at time.Time) {
	if e.shallow || len(dirs) == 0 {
		return
	}
	for i, n := range dirs {
		if to := n.path(); to != olds[i] {
			e.aliases = append(e.aliases, alias{from: olds[i], to: to, fence: e.fenceMade + 1})
			e.fenceWants = true
			if e.selves == nil {
				e.selves = make(map[string]uint64)
			}
			e.selves[olds[i]] = e.fenceMade + 1
		}
	}
	if !e.sys.follows {
		// The old ones go first: fsnotify would keep the old path for a directory that it knows.
		for i, n := range dirs {
			e.forget(n, filepath.Clean(olds[i]))
		}
	}
	e.compare(dirs, true, at)
}
