package replay

import "strings"

func (v *view) node(nodeid uint64) *vnode {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.nodes.Get(nodeid)
}

// lookup returns what the guest's kernel may have cached for parent/name, and what
// the name stood for before the events that are still to come.
func (v *view) lookup(parent uint64, name string) (now, before *vnode) {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.nodes.Get(parent)
	if p == nil {
		return nil, nil
	}
	d := p.atLocked(name)
	if d.shadow != nil && v.nodes.Get(d.shadow.id) == d.shadow {
		return d.node, d.shadow
	}
	return d.node, d.node
}

// place returns a name by which the guest knows n.
func (v *view) place(n *vnode) (parent uint64, name string, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := n.lastEdge()
	if e.parent == nil {
		return 0, "", false
	}
	return e.parent.id, e.name, true
}

// reachable reports whether a directory has a way from the root, or from the staging directory.
func (v *view) reachable(id uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id != rootID && id != stagingID {
		n := v.nodes.Get(id)
		if n == nil {
			return false
		}
		e := n.lastEdge()
		if e.parent == nil {
			return false
		}
		id = e.parent.id
	}
	return true
}

func (v *view) len() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.nodes.Len() - 1
}

// dirs returns the nodeids of the directories that the guest knows, the root first.
func (v *view) dirs() []uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	ids := []uint64{rootID}
	for id, n := range v.nodes.All() {
		if n.isDir() && id != rootID && id < stagingID && n.parent != nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// seenName is a name that the guest can know of; node is nil if it was only listed.
type seenName struct {
	node  *vnode
	isDir bool
}

// names returns what the guest can know of in a directory.
func (v *view) names(id uint64) map[string]seenName {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make(map[string]seenName)
	if n := v.nodes.Get(id); n != nil {
		for name, d := range n.childrenLocked() {
			if told := d.toldLocked(); told != nil || d.listed {
				out[name] = seenName{told, told == nil && d.listedDir || told != nil && told.isDir()}
			}
		}
	}
	return out
}

// depth returns how many directories are above id.
func (v *view) depth(id uint64) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	depth := 0
	for n := v.nodes.Get(id); n != nil && n.parent != nil; depth++ {
		n = n.lastEdge().parent
	}
	return depth
}

// gen returns the generation of n.
func (v *view) gen(n *vnode) uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return n.getLocked().gen
}

// linksOf returns the link count that the guest's kernel holds for n, as far as we told it.
func (v *view) linksOf(n *vnode) uint32 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return n.nlink
}

// rightsOf returns what the guest was told of who may do what with n.
func (v *view) rightsOf(n *vnode) rights {
	v.mu.Lock()
	defer v.mu.Unlock()
	return n.rightsLocked()
}

// otherNames counts the names of n in known directories besides parent/name.
func (v *view) otherNames(n *vnode, parent uint64, name string) (count int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for e := range n.edgesLocked() {
		if e.parent.id != stagingID && (e.parent.id != parent || e.name != name) {
			count++
		}
	}
	return count
}

// doubt forgets what a name stands for: the host says something else, and no event is pending.
func (v *view) doubt(parent uint64, name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.nodes.Get(parent)
	if p == nil {
		return
	}
	if d := p.atLocked(name); !d.empty() {
		v.unlinkLocked(p, name, false)
		if d.listed {
			p.setLocked(strings.Clone(name), dentry{listed: true, listedDir: d.listedDir})
		}
	}
}

// edges returns the names of n in known directories.
func (v *view) edges(n *vnode) (keys []nameKey) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for e := range n.edgesLocked() {
		if e.parent.id != stagingID {
			keys = append(keys, nameKey{e.parent.id, e.name})
		}
	}
	return keys
}
