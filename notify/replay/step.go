package replay

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// stepOp says which system call a step is.
type stepOp uint8

const (
	opIdle    stepOp = iota // none: the replayer walks to a directory
	opMake                  // mknodat, mkdirat, symlinkat, linkat
	opRemove                // unlinkat
	opMove                  // renameat2
	opSetattr               // utimensat
	opOpen                  // openat, close
)

var stepNames = [...]string{"walk", "make", "remove", "move", "setattr", "open"}

func (o stepOp) String() string { return stepNames[o] }

// side is one name that a step works on, with what a LOOKUP of it is answered.
type side struct {
	parent uint64
	name   string
	// node is what the name stands for; nil answers "absent".
	node *vnode
	// nlink, if not zero, is the link count that the kernel must hold before the
	// step, so that its own arithmetic ends at the host's.
	nlink uint32
	// entry, if not nil, is a full answer. The step holds one lookup of it.
	entry *fuse.EntryOut
}

// step is one system call of the replayer. The replayer fills it and sleeps in the
// system call while handlers read and mark it; the kernel's request and answer
// order the two.
type step struct {
	op       stepOp
	src, dst side
	exchange bool
	// made is the answer to the create request of an opMake; madeCounted says that
	// the wrapped file system counted its lookup.
	made        *fuse.EntryOut
	madeCounted bool
	// used marks made as handed to the kernel.
	used bool
	// open says that what is made is opened as well.
	open bool
	// asked marks sides that were looked up, done that the operation itself was
	// answered, and mismatch that it named other nodes than the step's.
	srcAsked, dstAsked, done, mismatch bool
	// ended refuses what comes after the call has returned.
	ended bool
	// mu guards what handlers write: the kernel of a guest that cannot be trusted sends
	// several requests of one call at a time, and late ones. The replayer reads it after finished or end.
	mu sync.Mutex
}

// finished reports whether the operation was answered. After it, the replayer sees
// what the handlers wrote.
func (s *step) finished() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done
}

// end is finished for the last time: no handler touches the step any more.
func (s *step) end() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	return s.done
}

func (s *step) String() string {
	show := func(sd *side, asked bool) string {
		id := uint64(0)
		if sd.node != nil {
			id = sd.node.id
		}
		return fmt.Sprintf("%d/%q=%d asked=%t", sd.parent, sd.name, id, asked)
	}
	return fmt.Sprintf("%s src %s dst %s done=%t mismatch=%t", s.op, show(&s.src, s.srcAsked), show(&s.dst, s.dstAsked), s.done, s.mismatch)
}

// stagingName is a name that no guest process knows: it is in no listing.
func stagingName() string {
	var b [12]byte
	rand.Read(b[:])
	return ".heraldfs-staging-" + hex.EncodeToString(b[:])
}

// refuse answers a request that no step expects.
func (f *FS) refuse(s *step, what string) fuse.Status {
	s.mismatch = true
	f.stats.Unexpected.Add(1)
	f.stats.setLast("unexpected " + what + " in step " + s.op.String())
	return fuse.EIO
}

func (s *step) match(parent uint64, name string) *side {
	switch {
	case s.op == opIdle:
		return nil
	case s.op == opMake && s.dst.parent == parent && s.dst.name == name:
		return &s.dst
	case s.src.name == name && s.src.parent == parent && s.src.name != "":
		s.srcAsked = true
		return &s.src
	case s.dst.name == name && s.dst.parent == parent && s.dst.name != "":
		s.dstAsked = true
		return &s.dst
	}
	return nil
}

// answerLookup answers a LOOKUP of the replayer from the state before the event.
func (f *FS) answerLookup(s *step, parent uint64, name string, out *fuse.EntryOut) fuse.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name == f.staging && f.view.isTop(parent) {
		n := f.view.node(stagingID)
		*out = fuse.EntryOut{NodeId: stagingID}
		f.view.fillGhost(n, &out.Attr)
		f.view.told(0, "", out, false, false)
		return fuse.OK
	}
	if parent == stagingID {
		if n := f.aside.node(name); n != nil {
			f.answerAside(n, out)
			return fuse.OK
		}
	}
	var sd *side
	if !s.ended {
		sd = s.match(parent, name)
	}
	if sd == nil {
		// The way to a directory: what the guest knows by this name.
		n, _ := f.view.lookup(parent, name)
		if n == nil {
			return fuse.ENOENT
		}
		sd = &side{parent: parent, name: name, node: n}
	}
	if e := sd.entry; e != nil {
		*out = *e
		f.limitEntry(parent, out)
		if !f.ref(out.NodeId) {
			sd.entry = nil // the step's own lookup becomes the kernel's
		}
		sd.node = f.view.told(parent, name, out, false, false)
		return fuse.OK
	}
	if sd.node == nil {
		return fuse.ENOENT
	}
	*out = fuse.EntryOut{NodeId: sd.node.id, Generation: f.view.gen(sd.node)}
	f.fill(sd.node, &out.Attr)
	if sd.node.isDir() && f.view.super(sd.node.id) == sd.node.id {
		out.Attr.Flags |= fuse.ATTR_SUBMOUNT
	}
	if sd.nlink != 0 {
		out.Attr.Nlink = sd.nlink
	}
	if parent == stagingID {
		parent, name = 0, ""
	}
	f.view.told(parent, name, out, false, !sd.node.isGhost() && !f.ref(out.NodeId))
	return fuse.OK
}

// ref raises the wrapped file system's lookup count, if that can be done.
func (f *FS) ref(nodeid uint64) bool {
	r, ok := f.RawFileSystem.(interface{ Ref(nodeid uint64) bool })
	return ok && r.Ref(nodeid)
}

// fill gives the attributes of a node: the host's, or made up if it is gone.
func (f *FS) fill(n *vnode, out *fuse.Attr) {
	if !n.isGhost() {
		var in fuse.GetAttrIn
		var a fuse.AttrOut
		in.NodeId = n.id
		if f.RawFileSystem.GetAttr(nil, &in, &a).Ok() && a.Attr.Mode&unix.S_IFMT == n.mode() {
			*out = a.Attr
			return
		}
	}
	f.view.fillGhost(n, out)
}

func (f *FS) answerSetAttr(s *step, nodeid uint64, out *fuse.AttrOut) fuse.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.op != opSetattr || s.ended || s.done {
		return f.refuse(s, "setattr")
	}
	if s.src.node == nil || s.src.node.id != nodeid {
		s.mismatch = true
		return fuse.EIO
	}
	s.done = true
	if !s.src.node.isGhost() {
		var in fuse.GetAttrIn
		in.NodeId = nodeid
		if f.RawFileSystem.GetAttr(nil, &in, out).Ok() && out.Attr.Mode&unix.S_IFMT == s.src.node.mode() {
			f.view.attr(nodeid, &out.Attr)
			return fuse.OK
		}
	}
	*out = fuse.AttrOut{}
	f.view.fillGhost(s.src.node, &out.Attr)
	return fuse.OK
}

func (f *FS) answerMake(s *step, parent uint64, name string, mode uint32, out *fuse.EntryOut) fuse.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.op != opMake || s.ended || s.done || s.dst.parent != parent || s.dst.name != name || s.made == nil {
		return f.refuse(s, "create")
	}
	if s.made.Attr.Mode&unix.S_IFMT != mode {
		return f.refuse(s, "create of another type")
	}
	*out = *s.made
	f.limitEntry(parent, out)
	s.used, s.done = true, true
	if parent == stagingID {
		parent, name = 0, ""
	}
	f.view.told(parent, name, out, false, !s.madeCounted && !ours(out.NodeId))
	return fuse.OK
}

func (f *FS) answerRemove(s *step, parent uint64, name string) fuse.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.op != opRemove || s.ended || s.done || s.src.parent != parent || s.src.name != name {
		return f.refuse(s, "unlink")
	}
	s.done = true
	f.view.removed(parent, name, false)
	return fuse.OK
}

func (f *FS) answerRename(s *step, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.op != opMove || s.ended || s.done || s.src.parent != in.NodeId || s.src.name != oldName ||
		s.dst.parent != in.Newdir || s.dst.name != newName {
		return f.refuse(s, "rename")
	}
	s.done = true
	f.view.renamed(in.NodeId, oldName, in.Newdir, newName, s.exchange, false, s.src.node, s.dst.node)
	return fuse.OK
}

func (f *FS) answerOpen(s *step, nodeid uint64, out *fuse.OpenOut) fuse.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open && s.used && s.made.NodeId == nodeid {
		// A kernel that was once refused CREATE makes the file and opens it after.
		f.dummyOpen(nodeid, out)
		return fuse.OK
	}
	if s.op != opOpen || s.ended || s.done && !f.noOpen {
		return f.refuse(s, "open")
	}
	if s.src.node == nil || s.src.node.id != nodeid {
		s.mismatch = true
		return fuse.EIO
	}
	s.done = true
	if f.noOpen {
		return fuse.ENOSYS
	}
	f.dummyOpen(nodeid, out)
	if f.mute.Load() {
		// The one way to drop pages besides a change of the attributes.
		out.OpenFlags &^= fuse.FOPEN_KEEP_CACHE
	}
	return fuse.OK
}
