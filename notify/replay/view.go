package replay

import (
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify/nodeid"
)

const (
	rootID = fuse.FUSE_ROOT_ID
	// Nodeids of ours start here; a wrapped file system never counts so far.
	ghostBase = uint64(1) << 62
	stagingID = ghostBase - 1
	// dummyFh is the handle of every file that the replayer opens.
	dummyFh = uint64(1)<<63 | 0x6872
)

// vnode is what the guest's kernel holds of one inode. There can be millions: what most of them do not have is
// in more, and the order of the fields leaves no gaps.
type vnode struct {
	id  uint64
	ino uint64
	// parent and name are its first name, if it has one. The length of name is nameLen.
	parent   *vnode
	name     *byte
	more     *more  // made when it is needed
	count    uint32 // the low half of the kernel's lookup count
	nlink    uint32 // i_nlink in the guest's kernel, as far as we told it
	uid, gid uint32 // rights, as far as we told them
	perm     uint16
	nameLen  uint16
	typ      uint8 // S_IFMT bits, shifted
	opened   bool  // the guest has opened it: its pages may be cached
}

// typeShift is where the S_IFMT bits begin.
const typeShift = 12

// more is what few inodes have.
type more struct {
	// extra is the part of the lookup count that the wrapped file system does not know of.
	extra uint64
	gen   uint64 // its generation: with another one the kernel takes it for another inode
	// super is the node of the root of the guest's superblock that it is in, if that is not the share's own.
	super uint64
	count uint32 // the high half of the lookup count
	names []edge // besides the first, in the order in which they came
	// Directories only.
	kids *kids
	odd  map[string]dentry
}

var noMore more

// getLocked returns what n has of more, to be read.
func (n *vnode) getLocked() *more {
	if n.more == nil {
		return &noMore
	}
	return n.more
}

func (n *vnode) moreLocked() *more {
	if n.more == nil {
		n.more = new(more)
	}
	return n.more
}

// lookups is the kernel's lookup count.
func (n *vnode) lookups() uint64 { return uint64(n.getLocked().count)<<32 | uint64(n.count) }

func (n *vnode) setLookups(count uint64) {
	n.count = uint32(count)
	if high := uint32(count >> 32); high != n.getLocked().count {
		n.moreLocked().count = high
	}
}

// rights are what chmod and chown change.
type rights struct{ mode, uid, gid uint32 }

func rightsOf(a *fuse.Attr) rights { return rights{a.Mode &^ unix.S_IFMT, a.Uid, a.Gid} }

func (n *vnode) rightsLocked() rights { return rights{uint32(n.perm), n.uid, n.gid} }

func (n *vnode) setRights(r rights) { n.perm, n.uid, n.gid = uint16(r.mode), r.uid, r.gid }

// mode is the S_IFMT bits.
func (n *vnode) mode() uint32  { return uint32(n.typ) << typeShift }
func (n *vnode) isDir() bool   { return n.typ == unix.S_IFDIR>>typeShift }
func (n *vnode) isReg() bool   { return n.typ == unix.S_IFREG>>typeShift }
func (n *vnode) isGhost() bool { return n.id >= ghostBase }

// view is the guest kernel's dentry tree as far as the server can know it: what it
// answered, less what the kernel forgot. The kernel may drop a dentry without a
// word, so a name in the view means "may be cached".
type view struct {
	mu        sync.Mutex
	nodes     nodeid.Table[vnode]
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
	v := &view{ghostLast: ghostBase}
	for _, id := range []uint64{rootID, stagingID} {
		v.nodes.Put(id, &vnode{id: id, count: 1, typ: unix.S_IFDIR >> typeShift, nlink: 2})
	}
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
	n := v.nodes.Get(out.NodeId)
	if n == nil {
		n = &vnode{id: out.NodeId}
		if out.Generation != 0 {
			n.moreLocked().gen = out.Generation
		}
		v.nodes.Put(n.id, n)
		if n.isGhost() {
			v.ghostCount++
		}
	}
	n.setLookups(n.lookups() + 1)
	if extra {
		n.moreLocked().extra++
	}
	if typ := uint8(out.Attr.Mode & unix.S_IFMT >> typeShift); n.typ != typ {
		n.typ = typ // once: it is read without the lock
	}
	n.nlink, n.ino = out.Attr.Nlink, out.Attr.Ino
	n.setRights(rightsOf(&out.Attr))
	if n.isDir() && v.onDir != nil && n.lookups() == 1 && !ours(n.id) {
		v.onDir(n.id)
	}
	if p := v.nodes.Get(parent); p != nil && name != "" {
		v.placeLocked(p, n, out.Attr.Flags)
		v.linkLocked(p, name, n, early)
	}
	return n
}

// linkLocked makes p/name stand for n, and keeps name. early keeps what it stood for before.
func (v *view) linkLocked(p *vnode, name string, n *vnode, early bool) {
	d := p.atLocked(name)
	if v.onDir != nil {
		d.ahead = early && !v.deaf && (d.ahead || d.node == nil && d.shadow == nil && !d.listed)
		if !d.ahead {
			d.listed, d.listedDir = true, n.isDir()
		}
	}
	if v.listing == p.id {
		delete(v.ended, name)
	}
	if d.node == n {
		if v.onDir != nil {
			p.setLocked(name, d)
		}
		return
	}
	if early && d.node != nil && d.shadow == nil && !d.ahead && !v.deaf {
		d.shadow = d.node
	}
	if !early {
		d.shadow = nil
	}
	v.placeLocked(p, n, 0)
	if n.isDir() {
		// A directory has one dentry: the kernel moves it to where it is found.
		for e := range n.edgesLocked() {
			o := e.parent.atLocked(e.name)
			if o.node = nil; o.ahead {
				o.ahead = false
			} else {
				o.shadow = n
			}
			e.parent.setLocked(e.name, o)
		}
	}
	d.node = n
	p.setLocked(name, d)
}

// unlinkLocked ends p/name. early keeps what it stood for as the shadow.
func (v *view) unlinkLocked(p *vnode, name string, early bool) *vnode {
	if !early && v.listing == p.id {
		v.ended[strings.Clone(name)] = true
	}
	d := p.atLocked(name)
	if d.empty() {
		return nil
	}
	n := d.node
	switch {
	case !early:
		d.listed, d.ahead, d.shadow = false, false, nil
	case d.ahead:
		// Nobody has heard of it.
	case d.shadow == nil && !v.deaf:
		d.shadow = n
	}
	d.node = nil
	p.setLocked(name, d)
	return n
}

// absent records a negative answer to a guest process.
func (v *view) absent(parent uint64, name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p := v.nodes.Get(parent); p != nil {
		v.unlinkLocked(p, name, true)
	}
}

// attr records attributes that the kernel was given.
func (v *view) attr(nodeid uint64, a *fuse.Attr) {
	v.mu.Lock()
	if n := v.nodes.Get(nodeid); n != nil {
		n.nlink = a.Nlink
		n.setRights(rightsOf(a))
	}
	v.mu.Unlock()
}

func (v *view) opened(nodeid uint64) {
	v.mu.Lock()
	if n := v.nodes.Get(nodeid); n != nil {
		n.opened = true
	}
	v.mu.Unlock()
}

// removed records that the guest itself, or the replay, unlinked parent/name.
func (v *view) removed(parent uint64, name string, byGuest bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.nodes.Get(parent)
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
	p, np := v.nodes.Get(parent), v.nodes.Get(newParent)
	if p == nil || np == nil {
		return
	}
	src := v.unlinkLocked(p, name, false)
	dst := v.unlinkLocked(np, newName, false)
	if moved != nil {
		src = v.nodes.Get(moved.id)
	}
	if exchange && other != nil {
		dst = v.nodes.Get(other.id)
	}
	if src != nil {
		v.linkLocked(np, strings.Clone(newName), src, false)
	}
	if dst != nil {
		if exchange {
			v.linkLocked(p, strings.Clone(name), dst, false)
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
	n := v.nodes.Get(nodeid)
	if n == nil || nodeid == rootID || nodeid == stagingID {
		return nlookup
	}
	own := min(n.getLocked().extra, nlookup)
	if own > 0 {
		n.more.extra -= own
	}
	if have := n.lookups(); have > nlookup {
		n.setLookups(have - nlookup)
		return nlookup - own
	}
	v.deleteLocked(n)
	for e := range n.edgesLocked() {
		d := e.parent.atLocked(e.name)
		if d.node = nil; d.shadow == n {
			d.shadow = nil
		}
		e.parent.setLocked(e.name, d)
	}
	for name, d := range n.childrenLocked() {
		if d.node != nil {
			d.node.dropEdge(n, name)
		}
	}
	if n.more != nil {
		n.more.kids, n.more.odd = nil, nil
	}
	return nlookup - own
}

// ghost makes a node that stands for something that is not there any more.
func (v *view) ghost(isDir bool) *vnode {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ghostLast++
	n := &vnode{id: v.ghostLast, typ: unix.S_IFREG >> typeShift, nlink: 1}
	if isDir {
		n.typ, n.nlink = unix.S_IFDIR>>typeShift, 2
	}
	v.nodes.Put(n.id, n)
	v.ghostCount++
	return n
}

func (v *view) deleteLocked(n *vnode) {
	if v.nodes.Get(n.id) != n {
		return
	}
	v.nodes.Delete(n.id)
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
	if n.lookups() == 0 {
		v.deleteLocked(n)
	}
	v.mu.Unlock()
}
