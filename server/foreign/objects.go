package foreign

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/server/passthrough"
)

const rootID = fuse.FUSE_ROOT_ID

// objects binds host objects to nodeids, one to one.
type objects struct {
	fs *passthrough.FS

	mu   sync.Mutex
	node map[notify.Object]uint64
	host map[uint64]notify.Object
	// path holds what the typePath objects of the current event stand for.
	path map[notify.Object]uint64
	// same says that SOURCE is the host's own file system: handles mean the same on both sides.
	same bool
	// swept is the size at which the dead were looked for last.
	swept int
}

// sweepLeast is the least number of bindings that is worth a sweep.
const sweepLeast = 4096

func newObjects(fs *passthrough.FS) *objects {
	return &objects{fs: fs, node: make(map[notify.Object]uint64), host: make(map[uint64]notify.Object), path: make(map[notify.Object]uint64)}
}

// setRoot learns what the server calls the root. It may be another one after a reconnection.
func (o *objects) setRoot(root notify.Object, ok bool) {
	mine, _ := o.fs.Object(rootID)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.same = ok && root == mine
	if was, bound := o.host[rootID]; bound && was != root {
		clear(o.node)
		clear(o.host)
	}
	if ok {
		o.bindLocked(root, rootID)
	}
}

// forget drops every binding but the root's.
func (o *objects) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	root, ok := o.host[rootID]
	clear(o.node)
	clear(o.host)
	if ok {
		o.bindLocked(root, rootID)
	}
}

func (o *objects) exact() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.same
}

func (o *objects) alive(nodeid uint64) bool {
	_, ok := o.fs.Object(nodeid)
	return ok
}

// find returns the node that obj is bound to, 0 for none.
func (o *objects) find(obj notify.Object) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.findLocked(obj)
}

func (o *objects) findLocked(obj notify.Object) uint64 {
	var id uint64
	switch {
	case obj.IsZero():
		return 0
	case obj.Type == typeNode:
		id = obj.FS
	case obj.Type == typePath:
		id = o.path[obj]
	case o.same:
		var ids [4]uint64
		if known := o.fs.NodeIDs(ids[:0], obj); len(known) > 0 {
			return known[0]
		}
		return 0
	default:
		id = o.node[obj]
	}
	if id == 0 || o.alive(id) {
		return id
	}
	if host, ok := o.host[id]; ok {
		o.unbindLocked(host, id)
	}
	return 0
}

// hostOf returns what a node is called: the host's object if it is known.
func (o *objects) hostOf(nodeid uint64) (notify.Object, bool) {
	own, ok := o.fs.Object(nodeid)
	if !ok {
		return notify.Object{}, false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.same {
		return own, true
	}
	if host, ok := o.host[nodeid]; ok {
		return host, true
	}
	return notify.Object{FS: nodeid, Type: typeNode}, true
}

// bind says that obj is the node; strong evidence overrides an earlier binding of either, weak does not.
// It reports whether they are bound.
func (o *objects) bind(obj notify.Object, nodeid uint64, strong bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if obj.IsZero() || nodeid == 0 || o.same {
		return false
	}
	if obj.Type == typePath {
		if len(o.path) > 8 {
			clear(o.path)
		}
		o.path[obj] = nodeid
		return true
	}
	if obj.Type < 0 {
		return false
	}
	if was, ok := o.host[nodeid]; ok && was != obj && !strong {
		return false
	}
	o.bindLocked(obj, nodeid)
	return true
}

func (o *objects) bindLocked(obj notify.Object, nodeid uint64) {
	if was, ok := o.host[nodeid]; ok && was != obj {
		delete(o.node, was)
	}
	if was, ok := o.node[obj]; ok && was != nodeid {
		delete(o.host, was)
	}
	o.node[obj], o.host[nodeid] = nodeid, obj
	if len(o.node) >= sweepLeast && len(o.node) >= 2*o.swept {
		o.sweepLocked()
	}
}

// sweepLocked forgets what the guest has forgotten.
func (o *objects) sweepLocked() {
	for obj, id := range o.node {
		if !o.alive(id) {
			o.unbindLocked(obj, id)
		}
	}
	o.swept = max(len(o.node), sweepLeast/2)
}

func (o *objects) unbindLocked(obj notify.Object, id uint64) {
	delete(o.node, obj)
	delete(o.host, id)
}

// unpath forgets what paths stood for.
func (o *objects) unpath() {
	o.mu.Lock()
	clear(o.path)
	o.mu.Unlock()
}

// tree is the passthrough file system in the host's terms, for the replay.
type tree struct {
	*passthrough.FS
	share *Share
}

// NodeIDs implements replay.Tree.
func (t *tree) NodeIDs(dst []uint64, obj notify.Object) []uint64 {
	if t.share.objects.exact() && obj.Type >= notify.TypeInode {
		return t.FS.NodeIDs(dst, obj)
	}
	if id := t.share.objects.find(obj); id != 0 {
		dst = append(dst, id)
	}
	return dst
}

// Object implements replay.Tree.
func (t *tree) Object(nodeid uint64) (notify.Object, bool) { return t.share.objects.hostOf(nodeid) }

// Obtain implements replay.Tree.
func (t *tree) Obtain(obj notify.Object, parent uint64, name string, out *fuse.EntryOut) fuse.Status {
	s := t.share
	if s.objects.exact() {
		return t.FS.Obtain(obj, parent, name, out)
	}
	if id := s.objects.find(obj); id != 0 {
		own, ok := t.FS.Object(id)
		if !ok {
			return fuse.ENOENT
		}
		return t.FS.Obtain(own, parent, name, out)
	}
	if obj.Type == typeNode {
		return fuse.ENOENT
	}
	s.settler.refresh(parent, name)
	st := t.FS.Obtain(notify.Object{}, parent, name, out)
	if st == fuse.ENOENT && s.settler.lostDir(parent) {
		// A file server that goes by paths does not know yet where the host has moved it.
		return fuse.Status(unix.ESTALE)
	}
	if !st.Ok() || obj.IsZero() {
		return st
	}
	if !s.isObject(obj, out.NodeId, out.Attr.Ino) {
		t.FS.Forget(out.NodeId, 1)
		*out = fuse.EntryOut{}
		return fuse.ENOENT
	}
	return fuse.OK
}

// Attr implements replay.Tree. A file server that goes by paths answers for what has replaced a file as if
// it were that file. So of what the current event takes a name from, the guest's own count is believed.
func (t *tree) Attr(nodeid uint64, out *fuse.Attr) fuse.Status {
	s := t.share
	c := &s.cur
	if nodeid != c.victim || s.objects.exact() {
		return t.FS.Attr(nodeid, out)
	}
	if c.links <= 1 {
		return fuse.ENOENT
	}
	to := c.ev.Remote.To
	if st := t.FS.Attr(nodeid, out); !st.Ok() || to.Exists && out.Size == to.Size && int64(out.Ctime)*1e9+int64(out.Ctimensec) == to.Ctime {
		*out = fuse.Attr{Ino: out.Ino, Mode: unix.S_IFREG, Nlink: c.links - 1}
	}
	return fuse.OK
}

// Locate implements replay.Tree. Events of a Share say where their directories are.
func (t *tree) Locate(notify.Object) (notify.Object, string, error) {
	return notify.Object{}, "", notify.ErrNotSupported
}

// Moved and Drop hide what only host handles are good for.
func (t *tree) Moved(obj, dir notify.Object, name string) {
	if t.share.objects.exact() {
		t.FS.Moved(obj, dir, name)
	}
}

// Drop is called for each directory that the host removes.
func (t *tree) Drop(obj notify.Object) {
	if id := t.share.objects.find(obj); id != 0 {
		if own, ok := t.FS.Object(id); ok {
			t.FS.Drop(own)
		}
	}
}
