package replay

import (
	"hash/maphash"
	"iter"
	"slices"
	"unsafe"
)

type edge struct {
	parent *vnode
	name   string
}

// dentry is one name that the guest was told of. shadow is the node that the
// name stood for before a guest process looked it up ahead of the event: events
// that are still to come are about that one.
type dentry struct {
	node, shadow *vnode
	// listed says that the name was there when the directory was listed, or came
	// by an event since; only kept where the source can lose events.
	listed, listedDir bool
	// ahead says that a guest process looked the name up before any event told of it, and that nothing had been
	// there; only kept where the source can lose events.
	ahead bool
}

// toldLocked is what the name stands for as far as the guest's watchers have heard, nil if they know of nothing.
func (d *dentry) toldLocked() *vnode {
	switch {
	case d.shadow != nil:
		return d.shadow
	case d.ahead:
		return nil
	}
	return d.node
}

func (d *dentry) empty() bool { return d.node == nil && d.shadow == nil && !d.listed }

// atLocked returns what a name in p is. Most names are just the first one of an inode and need no more
// than a slot in the directory's kids; the others are in odd.
func (p *vnode) atLocked(name string) dentry {
	if p.more == nil {
		return dentry{}
	}
	if i := p.more.kids.find(name); i >= 0 {
		return dentry{node: p.more.kids.slots[i]}
	}
	return p.more.odd[name]
}

// setLocked makes p/name d, and keeps the names of the inodes in step. It keeps name.
func (p *vnode) setLocked(name string, d dentry) {
	m := p.moreLocked()
	slot := m.kids.find(name)
	var old *vnode
	if slot >= 0 {
		old = m.kids.slots[slot]
	} else {
		old = m.odd[name].node
	}
	plain := d.node != nil && d.shadow == nil && !d.listed && !d.ahead
	if old == d.node {
		plain = plain && d.node.firstIs(p, name)
	} else {
		plain = plain && d.node.parent == nil
	}
	if slot >= 0 && (!plain || old != d.node) {
		m.kids.remove(slot) // while the inode still has the name
		slot = -1
	}
	if old != d.node {
		if old != nil {
			old.dropEdge(p, name)
		}
		if d.node != nil {
			d.node.addEdge(p, name)
		}
	}
	switch {
	case plain:
		delete(m.odd, name)
		if slot < 0 {
			if m.kids == nil {
				m.kids = &kids{seed: maphash.MakeSeed()}
			}
			m.kids.add(d.node)
		}
	case d.empty():
		delete(m.odd, name)
	default:
		if m.odd == nil {
			m.odd = make(map[string]dentry)
		}
		m.odd[name] = d
	}
}

// childrenLocked yields the names in p. The one that is yielded may be dropped from its inode.
func (p *vnode) childrenLocked() iter.Seq2[string, dentry] {
	return func(yield func(string, dentry) bool) {
		if p.more == nil {
			return
		}
		if k := p.more.kids; k != nil {
			for _, n := range k.slots {
				if n != nil && !yield(n.nameLocked(), dentry{node: n}) {
					return
				}
			}
		}
		for name, d := range p.more.odd {
			if !yield(name, d) {
				return
			}
		}
	}
}

// nameLocked is the first name of n.
func (n *vnode) nameLocked() string { return unsafe.String(n.name, int(n.nameLen)) }

func (n *vnode) firstIs(p *vnode, name string) bool { return n.parent == p && n.nameLocked() == name }

func (n *vnode) setFirst(p *vnode, name string) {
	n.parent, n.name, n.nameLen = p, unsafe.StringData(name), uint16(len(name)) // below PATH_MAX
}

func (n *vnode) addEdge(p *vnode, name string) {
	if n.parent == nil {
		n.setFirst(p, name)
		return
	}
	m := n.moreLocked()
	m.names = append(m.names, edge{p, name})
}

func (n *vnode) dropEdge(p *vnode, name string) {
	switch {
	case n.firstIs(p, name):
		if n.more == nil || len(n.more.names) == 0 {
			n.parent, n.name, n.nameLen = nil, nil, 0
			return
		}
		first := n.more.names[0]
		n.setFirst(first.parent, first.name)
		n.more.names = slices.Delete(n.more.names, 0, 1)
	case n.more != nil:
		if i := slices.Index(n.more.names, edge{p, name}); i >= 0 {
			n.more.names = slices.Delete(n.more.names, i, i+1)
		}
	}
}

// edgesLocked yields the names of n, oldest first, as they are when it is called.
func (n *vnode) edgesLocked() iter.Seq[edge] {
	if n.parent == nil {
		return func(func(edge) bool) {}
	}
	first := edge{n.parent, n.nameLocked()}
	var others []edge
	if n.more != nil && len(n.more.names) > 0 {
		others = slices.Clone(n.more.names)
	}
	return func(yield func(edge) bool) {
		if !yield(first) {
			return
		}
		for _, e := range others {
			if !yield(e) {
				return
			}
		}
	}
}

// lastEdge returns the newest name of n; its parent is nil if there is none.
func (n *vnode) lastEdge() edge {
	if n.more != nil && len(n.more.names) > 0 {
		return n.more.names[len(n.more.names)-1]
	}
	return edge{n.parent, n.nameLocked()}
}
