package replay

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/heraldfs/heraldfs/notify"
)

// A directory that is announced as a submount is mounted by the guest's kernel when
// somebody enters it, as a superblock of its own with inodes of its own. Names do not move
// between two of them, so each has its own way into the staging directory.

// stagedBit marks the way into the staging directory from a superblock's root, among the directories that are open.
const stagedBit = uint64(1) << 63

// placeLocked says which superblock n, found in p, is in.
func (v *view) placeLocked(p, n *vnode, flags uint32) {
	switch {
	case ours(p.id):
	case flags&fuse.ATTR_SUBMOUNT != 0 && n.isDir():
		n.moreLocked().super = n.id
		v.divided.Store(true)
	case p.getLocked().super != 0 && n.getLocked().super == 0:
		n.moreLocked().super = p.more.super
	}
}

// super returns the superblock that a node is in: the node of its root, or zero for the share's own.
func (v *view) super(nodeid uint64) uint64 {
	if !v.divided.Load() {
		return 0
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if n := v.nodes.Get(nodeid); n != nil {
		return n.getLocked().super
	}
	return 0
}

func (v *view) superOf(n *vnode) uint64 {
	if !v.divided.Load() {
		return 0
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return n.getLocked().super
}

// superAt returns the superblock of a rename of n.
func (v *view) superAt(parent, newParent uint64, n *vnode) uint64 {
	switch {
	case !ours(parent):
		return v.super(parent)
	case !ours(newParent):
		return v.super(newParent)
	case n != nil:
		return v.superOf(n)
	}
	return 0
}

// isTop reports whether the node is the root of a superblock.
func (v *view) isTop(nodeid uint64) bool { return nodeid == rootID || v.super(nodeid) == nodeid }

// openIn is open; the staging directory is that of a superblock.
func (c *dirCache) openIn(id, super uint64) (notify.Slot, error) {
	if id == stagingID {
		return c.staged(super)
	}
	return c.open(id)
}

// staged returns the slot of the staging directory in a superblock.
func (c *dirCache) staged(super uint64) (notify.Slot, error) {
	if super == 0 {
		return c.staging, nil
	}
	if e := c.byID[super|stagedBit]; e != nil {
		c.lru.MoveToFront(e)
		return e.Value.(*openDir).slot, nil
	}
	top, err := c.open(super)
	if err != nil {
		return notify.SlotNone, err
	}
	return c.enter(super|stagedBit, top, c.fs.staging)
}

// alone performs a call about n in the staging directory.
func (r *Replayer) alone(n *vnode, call notify.Call) error {
	staging, err := r.dirs.staged(r.view.superOf(n))
	if err != nil {
		return err
	}
	call.Dir = staging
	return r.dirs.perform(call)
}

// limit returns how long the guest may cache what it is told of a node or of its names; 0 is as long as it is told.
func (f *FS) limit(nodeid uint64) time.Duration {
	if d := f.leased.Load(); d != 0 {
		return time.Duration(d)
	}
	if f.view.super(nodeid) != 0 {
		return time.Duration(f.shared.Load())
	}
	return 0
}

func (f *FS) limitEntry(parent uint64, out *fuse.EntryOut) {
	d := f.limit(parent)
	if d == 0 && out.Attr.Flags&fuse.ATTR_SUBMOUNT != 0 {
		d = time.Duration(f.shared.Load())
	}
	if d == 0 {
		return
	}
	if out.EntryTimeout() > d {
		out.SetEntryTimeout(d)
	}
	if out.AttrTimeout() > d {
		out.SetAttrTimeout(d)
	}
}

func (f *FS) limitAttr(nodeid uint64, out *fuse.AttrOut) {
	if d := f.limit(nodeid); d != 0 && out.Timeout() > d {
		out.SetTimeout(d)
	}
}
