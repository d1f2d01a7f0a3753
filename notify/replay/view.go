package replay

import (
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	rootID = fuse.FUSE_ROOT_ID
	// Nodeids of ours start here; a wrapped file system never counts so far.
	ghostBase = uint64(1) << 62
	stagingID = ghostBase - 1
	// dummyFh is the handle of every file that the replayer opens.
	dummyFh = uint64(1)<<63 | 0x6872
)

// vnode is what the guest's kernel holds of one inode.
type vnode struct {
	id uint64
	// count is the kernel's lookup count; extra is the part of it that the
	// wrapped file system does not know of.
	count, extra uint64
	gen          uint64 // its generation: with another one the kernel takes it for another inode
	ino          uint64
	mode         uint32 // S_IFMT bits
	nlink        uint32 // i_nlink in the guest's kernel, as far as we told it
	rights       rights // as far as we told it
	opened       bool   // the guest has opened it: its pages may be cached
	// super is the node of the root of the guest's superblock that it is in, if that is not the share's own.
	super    uint64
	names    []edge
	children map[string]*dentry // directories only, made when needed
}

// rights are what chmod and chown change.
type rights struct{ mode, uid, gid uint32 }

func rightsOf(a *fuse.Attr) rights { return rights{a.Mode &^ unix.S_IFMT, a.Uid, a.Gid} }

func (n *vnode) isDir() bool   { return n.mode == unix.S_IFDIR }
func (n *vnode) isReg() bool   { return n.mode == unix.S_IFREG }
func (n *vnode) isGhost() bool { return n.id >= ghostBase }

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
}

func (d *dentry) empty() bool { return d.node == nil && d.shadow == nil && !d.listed }

// view is the guest kernel's dentry tree as far as the server can know it: what it
// answered, less what the kernel forgot. The kernel may drop a dentry without a
// word, so a name in the view means "may be cached".
type view struct {
	mu        sync.Mutex
	nodes     map[uint64]*vnode
	ghostLast uint64
	// ghostCount is how many of nodes are ghosts.
	ghostCount int
	// deaf says that no event will come for what a guest process looks up early.
	deaf  bool
	marks tombstones
	// onDir, if set, is called with each directory that becomes known. It must not block.
	onDir func(id uint64)
	// listing is the directory that is being listed for onDir, and ended are the names whose end was
	// told meanwhile: the listing can be from before.
	listing uint64
	ended   map[string]bool
	// divided says that there is more than one superblock.
	divided atomic.Bool
}

func newView() *view {
	v := &view{nodes: make(map[uint64]*vnode), ghostLast: ghostBase}
	v.nodes[rootID] = &vnode{id: rootID, count: 1, mode: unix.S_IFDIR, nlink: 2}
	v.nodes[stagingID] = &vnode{id: stagingID, count: 1, mode: unix.S_IFDIR, nlink: 2}
	return v
}

// told records a positive answer: parent/name is the node of out, and the kernel's
// lookup count of it went up by one. extra says that the wrapped file system did not count.
func (v *view) told(parent uint64, name string, out *fuse.EntryOut, early, extra bool) *vnode {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.toldLocked(parent, name, out, early, extra)
}

func (v *view) toldLocked(parent uint64, name string, out *fuse.EntryOut, early, extra bool) *vnode {
	n := v.nodes[out.NodeId]
	if n == nil {
		n = &vnode{id: out.NodeId, gen: out.Generation}
		v.nodes[out.NodeId] = n
		if n.isGhost() {
			v.ghostCount++
		}
	}
	n.count++
	if extra {
		n.extra++
	}
	if mode := out.Attr.Mode & unix.S_IFMT; n.mode != mode {
		n.mode = mode // once: it is read without the lock
	}
	n.nlink, n.ino, n.rights = out.Attr.Nlink, out.Attr.Ino, rightsOf(&out.Attr)
	if n.count == 1 && n.isDir() && v.onDir != nil && !ours(n.id) {
		v.onDir(n.id)
	}
	if p := v.nodes[parent]; p != nil && name != "" {
		v.placeLocked(p, n, out.Attr.Flags)
		v.linkLocked(p, name, n, early)
	}
	return n
}

// linkLocked makes p/name stand for n. early keeps what it stood for before.
func (v *view) linkLocked(p *vnode, name string, n *vnode, early bool) {
	name = strings.Clone(name)
	d := p.child(name)
	if v.onDir != nil {
		d.listed, d.listedDir = true, n.isDir()
	}
	if v.listing == p.id {
		delete(v.ended, name)
	}
	if d.node == n {
		return
	}
	if d.node != nil {
		v.dropEdge(d.node, p, name)
		if early && d.shadow == nil && !v.deaf {
			d.shadow = d.node
		}
	}
	if !early {
		d.shadow = nil
	}
	d.node = n
	v.placeLocked(p, n, 0)
	if n.isDir() {
		// A directory has one dentry: the kernel moves it to where it is found.
		for _, e := range n.names {
			if o := e.parent.children[e.name]; o != nil && o.node == n {
				o.node, o.shadow = nil, n
			}
		}
		n.names = n.names[:0]
	}
	n.names = append(n.names, edge{p, name})
}

// unlinkLocked ends p/name. early keeps what it stood for as the shadow.
func (v *view) unlinkLocked(p *vnode, name string, early bool) *vnode {
	if !early && v.listing == p.id {
		v.ended[strings.Clone(name)] = true
	}
	d := p.children[name]
	if d == nil {
		return nil
	}
	if !early {
		d.listed = false
	}
	n := d.node
	if n != nil {
		v.dropEdge(n, p, name)
	}
	if early && d.shadow == nil && !v.deaf {
		d.shadow = n
	}
	d.node = nil
	if !early {
		d.shadow = nil
	}
	if d.empty() {
		delete(p.children, name)
	}
	return n
}

func (v *view) dropEdge(n, p *vnode, name string) {
	for i, e := range n.names {
		if e.parent == p && e.name == name {
			n.names = append(n.names[:i], n.names[i+1:]...)
			return
		}
	}
}

// absent records a negative answer to a guest process.
func (v *view) absent(parent uint64, name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p := v.nodes[parent]; p != nil {
		v.unlinkLocked(p, name, true)
	}
}

// attr records attributes that the kernel was given.
func (v *view) attr(nodeid uint64, a *fuse.Attr) {
	v.mu.Lock()
	if n := v.nodes[nodeid]; n != nil {
		n.nlink, n.rights = a.Nlink, rightsOf(a)
	}
	v.mu.Unlock()
}

func (v *view) opened(nodeid uint64) {
	v.mu.Lock()
	if n := v.nodes[nodeid]; n != nil {
		n.opened = true
	}
	v.mu.Unlock()
}

// removed records that the guest itself, or the replay, unlinked parent/name.
func (v *view) removed(parent uint64, name string, byGuest bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.nodes[parent]
	if p == nil {
		return
	}
	if n := v.unlinkLocked(p, name, false); n != nil && n.nlink > 0 {
		n.nlink--
		if n.isDir() {
			n.nlink = 0
		}
	}
	if byGuest {
		v.marks.put(parent, name, false)
	}
}

// renamed records that parent/name is now newParent/newName; exchange swaps. moved and other, if not
// nil, are what the two names stood for, where the view may not know.
func (v *view) renamed(parent uint64, name string, newParent uint64, newName string, exchange, byGuest bool, moved, other *vnode) {
	v.mu.Lock()
	defer v.mu.Unlock()
	p, np := v.nodes[parent], v.nodes[newParent]
	if p == nil || np == nil {
		return
	}
	src := v.unlinkLocked(p, name, false)
	dst := v.unlinkLocked(np, newName, false)
	if moved != nil {
		src = v.nodes[moved.id]
	}
	if exchange && other != nil {
		dst = v.nodes[other.id]
	}
	if src != nil {
		v.linkLocked(np, newName, src, false)
	}
	if dst != nil {
		if exchange {
			v.linkLocked(p, name, dst, false)
		} else if dst != src && dst.nlink > 0 {
			dst.nlink--
		}
	}
	if byGuest {
		v.marks.put(parent, name, exchange)
		v.marks.put(newParent, newName, true)
	}
}

// forget lowers the lookup count and returns the part that the wrapped file
// system has to hear of.
func (v *view) forget(nodeid, nlookup uint64) uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.nodes[nodeid]
	if n == nil || nodeid == rootID || nodeid == stagingID {
		return nlookup
	}
	own := min(n.extra, nlookup)
	n.extra -= own
	if n.count > nlookup {
		n.count -= nlookup
		return nlookup - own
	}
	v.deleteLocked(n)
	for _, e := range n.names {
		if d := e.parent.children[e.name]; d != nil && d.node == n {
			d.node = nil
			if d.shadow == n {
				d.shadow = nil
			}
			if d.empty() {
				delete(e.parent.children, e.name)
			}
		}
	}
	n.names = nil
	for name, d := range n.children {
		if d.node != nil {
			v.dropEdge(d.node, n, name)
		}
	}
	n.children = nil
	return nlookup - own
}

// ghost makes a node that stands for something that is not there any more.
func (v *view) ghost(isDir bool) *vnode {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ghostLast++
	n := &vnode{id: v.ghostLast, mode: unix.S_IFREG, nlink: 1}
	if isDir {
		n.mode, n.nlink = unix.S_IFDIR, 2
	}
	v.nodes[n.id] = n
	v.ghostCount++
	return n
}

func (v *view) deleteLocked(n *vnode) {
	if v.nodes[n.id] != n {
		return
	}
	delete(v.nodes, n.id)
	if n.isGhost() {
		v.ghostCount--
	}
}

// release drops a ghost that the kernel was never told of.
func (v *view) release(n *vnode) {
	if n == nil || !n.isGhost() {
		return
	}
	v.mu.Lock()
	if n.count == 0 {
		v.deleteLocked(n)
	}
	v.mu.Unlock()
}
