package replay

import (
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// The kernel of a virtual machine takes no notifications. What they do is done by calls that
// make the kernel ask: CallStat for attributes, and with them pages and listings, and CallAsk
// for names. They are put off until the next step, whose round trip they share.

// asideLimit is how many files can be asked about in one message.
const asideLimit = 128

// asideTable says which file each of some names in the staging directory stands for. A file is
// reached there without a name of its own, which can be any by now. The names are used again and
// again: the kernel holds an inode for each.
type asideTable struct {
	mu    sync.Mutex
	nodes [asideLimit]*vnode
	used  int
}

// put gives n a name that is good until reset; none if all are in use.
func (t *asideTable) put(n *vnode) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.used == asideLimit {
		return "", false
	}
	t.nodes[t.used] = n
	t.used++
	return "aside" + strconv.Itoa(t.used-1), true
}

func (t *asideTable) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.nodes[:t.used])
	t.used = 0
}

func (t *asideTable) node(name string) *vnode {
	if len(name) < 6 || name[:5] != "aside" {
		return nil
	}
	i, err := strconv.Atoi(name[5:])
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil || i < 0 || i >= t.used {
		return nil
	}
	return t.nodes[i]
}

// answerAside answers a LOOKUP of such a name.
func (f *FS) answerAside(n *vnode, out *fuse.EntryOut) {
	*out = fuse.EntryOut{NodeId: n.id, Generation: f.view.gen(n)}
	f.fill(n, &out.Attr)
	f.view.told(0, "", out, false, !n.isGhost() && !f.ref(out.NodeId))
}

// mark makes sure that a kernel which drops pages when it sees another mtime drops them: the
// replayer asks for nothing else, and a change within the tick of the host's
// clock would not show. What is made up is not cached.
func (f *FS) mark(h *fuse.InHeader, out *fuse.AttrOut) {
	if f.mute.Load() && h.Pid != 0 && h.Pid == f.tid.Load() && out.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
		out.Attr.Mtimensec ^= 1
		out.AttrValid, out.AttrValidNsec = 0, 0
	}
}

// lease limits how long the guest's kernel may cache what it is told from now on; 0 is no limit.
func (f *FS) lease(d time.Duration) { f.leased.Store(int64(d)) }

// asker is the Notifier for such a kernel. It belongs to the replayer.
type asker struct{ r *Replayer }

// InvalInode implements Notifier.
func (a asker) InvalInode(nodeid uint64, _, _ int64) error {
	r := a.r
	n := r.view.node(nodeid)
	if n == nil || !r.dirs.started() {
		return nil
	}
	if n.isDir() {
		dir, err := r.dirs.open(nodeid)
		if err != nil {
			return nil // no name leads there any more
		}
		return r.dirs.later(notify.Call{Op: notify.CallStat, Dir: dir})
	}
	var attr fuse.Attr
	if !r.cfg.Tree.Attr(nodeid, &attr).Ok() || attr.Nlink == 0 {
		// It lives in the guest until its last name is told to be gone: what could be asked of it is made up.
		return nil
	}
	staging, err := r.dirs.staged(r.view.superOf(n))
	if err != nil {
		return nil // as above
	}
	name, ok := r.fs.aside.put(n)
	if !ok {
		if err := r.dirs.flush(); err != nil {
			return err
		}
		name, _ = r.fs.aside.put(n)
	}
	return r.dirs.later(notify.Call{Op: notify.CallStat, Dir: staging, Name: name})
}

// InvalEntry implements Notifier.
func (a asker) InvalEntry(parent uint64, name string, _ bool) error {
	if !a.r.dirs.started() {
		return nil
	}
	super := uint64(0)
	if parent == stagingID {
		if n, _ := a.r.view.lookup(parent, name); n != nil {
			super = a.r.view.superOf(n)
		}
	}
	dir, err := a.r.dirs.openIn(parent, super)
	if err != nil {
		return nil
	}
	return a.r.dirs.later(notify.Call{Op: notify.CallAsk, Dir: dir, Name: name})
}

// freshen has the next step begin by asking for the attributes of what it is about.
func (r *Replayer) freshen(sd *side, n *vnode, op notify.Op) {
	content := (op == notify.OpModify || op == notify.OpCloseWrite) && n.isReg() && r.view.isOpened(n)
	if !content && op != notify.OpAttrib {
		return
	}
	at := n.id
	if sd.name != "" {
		at = sd.parent
	}
	dir, err := r.dirs.openIn(at, r.view.superOf(n))
	if err != nil {
		return // the step will find the same
	}
	r.refused(r.dirs.later(notify.Call{Op: notify.CallStat, Dir: dir, Name: sd.name}))
}

// ghosts returns how many nodes the guest holds that stand for nothing.
func (v *view) ghosts() (count int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.ghostCount
}

// quiet says whether answers that are ahead of events are remembered: while events are lost, none is still to come.
func (v *view) quiet(on bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.deaf = on
	if !on {
		return
	}
	for _, n := range v.nodes.All() {
		for name, d := range n.getLocked().odd {
			d.shadow = nil
			n.setLocked(name, d)
		}
	}
}
