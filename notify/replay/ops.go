package replay

import (
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// stageLink is the name in the staging directory under which an inode is reached
// alone. One is enough: its answers are never cached.
const stageLink = "link"

// stage returns a name in the staging directory for something that comes from or goes
// to where the guest knows nothing. What went there stays until the kernel forgets it
// or it comes back: a directory keeps its watchers.
func (r *Replayer) stage(n *vnode) string {
	if n != nil {
		if parent, name, ok := r.view.place(n); ok && parent == stagingID {
			return name
		}
	}
	r.staged++
	return strconv.FormatUint(r.staged, 10)
}

// replay performs one event in the guest, on each mount where it is known.
func (r *Replayer) replay(ev *notify.Event) {
	switch ev.Op {
	case notify.OpOverflow:
		r.recon.overflow(r, ev)
		return
	case notify.OpLinkCount:
		r.dropAttr(ev.Object)
		switch n := r.object(ev.Object, stagingID); {
		case r.mask&notify.Attrib == 0:
		case r.cfg.Files == nil:
			r.links.add(ev.Object, ev.Time)
		case n != nil && !n.isDir():
			// From the mark of a file that is in no known directory: nothing else will tell.
			r.linkCount(n)
		}
		return
	case notify.OpDeleteSelf:
		r.recon.died(ev.Object)
		return
	}
	mounts := ev.Op == notify.OpMount || ev.Op == notify.OpUnmount // no event, but another tree
	if ev.Op.Mask()&r.mask == 0 && !mounts {
		r.stats.Masked.Add(1)
		r.cohere(ev)
		return
	}
	switch ev.Op {
	case notify.OpRename, notify.OpExchange:
		as, bs := r.nodes(ev.Dir, ev.NewDir)
		pairs := make([][2]uint64, 0, 2)
		for i := range as {
			pairs = append(pairs, [2]uint64{as[i], bs[i]})
		}
		if len(pairs) == 0 {
			pairs = append(pairs, [2]uint64{})
		}
		for _, p := range pairs {
			r.move(p[0], p[1], ev)
		}
	default:
		ids, _ := r.nodes(ev.Dir, notify.Object{})
		if len(ids) == 0 {
			r.one(stagingID, ev)
			return
		}
		for _, p := range append([]uint64(nil), ids...) {
			r.one(p, ev)
		}
	}
	switch {
	case ev.Verify && ev.Object.IsZero():
		// Such a source merges nothing: its events are right, but perhaps not our objects.
		r.recon.check(r, ev)
	case ev.Verify:
		r.recon.verify(r, ev)
	}
}

// one performs an event about a single name in the directory p, which is the
// staging directory if the guest knows the object but not where it is.
func (r *Replayer) one(p uint64, ev *notify.Event) {
	name := ev.Name
	if ev.Name == "." {
		n := r.view.node(p)
		if n == nil || p == stagingID {
			return
		}
		if !r.view.isTop(p) {
			pp, nm, ok := r.view.place(n)
			if !ok {
				r.onInode(n, ev.Op)
				return
			}
			p, name = pp, nm
		}
	}
	if p == stagingID {
		n := r.object(ev.Object, stagingID)
		if n == nil {
			r.stats.Dropped.Add(1)
			return
		}
		if ev.Op == notify.OpDelete {
			// Its ATTRIB and DELETE_SELF follow from the link count.
			r.links.add(ev.Object, ev.Time)
			return
		}
		if !n.isDir() && ev.Op != notify.OpCreate {
			r.onInode(n, ev.Op)
		}
		return
	}
	switch ev.Op {
	case notify.OpCreate:
		r.create(p, ev)
	case notify.OpDelete:
		r.remove(p, ev)
	case notify.OpModify, notify.OpAttrib, notify.OpAccess:
		r.setattr(p, name, ev)
	case notify.OpOpen, notify.OpCloseNowrite, notify.OpCloseWrite:
		r.open(p, name, ev)
	case notify.OpMount, notify.OpUnmount:
		r.far.InvalEntry(p, name, false)
		r.far.InvalInode(p, 0, 0)
	}
}

// obtain asks the file system for what ev's name stood for: by its object, or by name if nothing
// later in the queue changes what the name stands for.
func (r *Replayer) obtain(obj notify.Object, dir notify.Object, p uint64, name string, out *fuse.EntryOut) bool {
	if r.byName(obj, p) && r.ahead.changes(dir, name) {
		return false
	}
	if found, asked := r.found.entry(obj, p, name, out); asked {
		return found
	}
	return r.tree.Obtain(obj, p, name, out).Ok()
}

// target finds what parent/name meant when the event happened. Either the guest
// knows it (node), or it is looked up now (entry), or it is gone: a ghost.
func (r *Replayer) target(p uint64, name string, ev *notify.Event) side {
	sd := side{parent: p, name: name}
	now, before := r.view.lookup(p, name)
	obj := ev.Object
	if ev.Name == "." {
		obj = ev.Dir
	}
	if obj.IsZero() && ev.Op != notify.OpAttrib && before != nil && before.mode() == unix.S_IFLNK {
		before = nil // a symbolic link is never written: the name had another meaning then
	}
	if n := r.object(obj, p); n != nil {
		sd.node = n
	} else if obj.IsZero() && before != nil && !before.isGhost() && before.isDir() == ev.IsDir {
		sd.node = before
	} else {
		var out fuse.EntryOut
		if r.obtain(obj, ev.Dir, p, name, &out) {
			mode := out.Attr.Mode & unix.S_IFMT
			old := obj.IsZero() && mode == unix.S_IFLNK && ev.Op != notify.OpAttrib
			if mode == unix.S_IFDIR == ev.IsDir && !old {
				sd.entry = &out
				sd.node = &vnode{id: out.NodeId, typ: uint8(out.Attr.Mode & unix.S_IFMT >> typeShift)}
				return sd
			}
			r.far.Forget(out.NodeId, 1)
		}
		if before != nil && before.isGhost() && before.isDir() == ev.IsDir {
			sd.node = before
		} else {
			sd.node = r.view.ghost(ev.IsDir)
		}
	}
	if now != nil && now != sd.node {
		r.expire(p, name)
	}
	r.doubted(ev, sd.node, now != before)
	return sd
}

func (r *Replayer) create(p uint64, ev *notify.Event) {
	if exists, ok := r.view.after(p, ev.Name, ev.Time); ok && !exists {
		// The guest itself removed it again before it could hear of it.
		r.stats.Skipped.Add(1)
		return
	}
	covered := false
	ok := r.run(ev, func(attempt int) *step {
		s := &step{op: opMake, dst: side{parent: p, name: ev.Name}}
		var out fuse.EntryOut
		if !ev.IsDir && attempt < lastAttempt && (!r.ahead.hurried(ev.Object) || r.object(ev.Object, p) != nil) && r.obtain(ev.Object, ev.Dir, p, ev.Name, &out) {
			if out.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
				s.made, s.madeCounted = &out, true
				if n := r.view.node(out.NodeId); n != nil && out.Attr.Nlink > 1 {
					s.src = side{parent: stagingID, name: stageLink, node: n}
					covered = true
				}
				return s
			}
			r.far.Forget(out.NodeId, 1)
		} else if n := r.object(ev.Object, p); !ev.IsDir && attempt < lastAttempt && n != nil && !n.isDir() && r.view.otherNames(n, p, ev.Name) > 0 {
			// The host has removed it meanwhile; the guest has it still, by another name.
			s.made = &fuse.EntryOut{NodeId: n.id, Generation: r.view.gen(n)}
			r.view.fillGhost(n, &s.made.Attr)
			s.made.Attr.Nlink = r.view.linksOf(n) + 1
			s.src = side{parent: stagingID, name: stageLink, node: n}
			covered = true
			return s
		}
		// A directory is left unknown until somebody looks it up: what happens in
		// it meanwhile costs nothing.
		g := r.view.ghost(ev.IsDir)
		if r.object(ev.Object, p) != nil {
			r.held.at = 0 // the file that the guest knows is to be closed, not its stand-in
		}
		s.made = &fuse.EntryOut{NodeId: g.id}
		r.view.fillGhost(g, &s.made.Attr)
		return s
	}, func(s *step) error {
		dir, err := r.dirs.open(p)
		if err != nil {
			return err
		}
		if s.src.name != "" {
			staging, err := r.dirs.staged(r.view.super(p))
			if err != nil {
				return err
			}
			return r.dirs.perform(notify.Call{Op: notify.CallLink, Dir: staging, Name: stageLink, NewDir: dir, NewName: ev.Name})
		}
		call := notify.Call{Op: notify.CallMknod, Dir: dir, Name: ev.Name}
		switch mode := s.made.Attr.Mode & unix.S_IFMT; mode {
		case unix.S_IFDIR:
			call.Op, call.Mode = notify.CallMkdir, 0o700
		case unix.S_IFLNK:
			call.Op, call.NewName = notify.CallSymlink, "-"
		default:
			if mode == unix.S_IFREG && r.held.at > 0 {
				return r.makeHeld(s, dir)
			}
			call.Mode, call.Rdev = mode|0o600, s.made.Attr.Rdev
		}
		return r.dirs.perform(call)
	})
	if ok && covered {
		r.links.cover(ev.Object, true)
	}
}

// before sets the link count that the kernel must hold for n, so that taking one
// away leaves the host's.
func (r *Replayer) before(sd *side) {
	n := sd.node
	if n == nil || n.isGhost() || n.isDir() {
		return
	}
	var a fuse.Attr
	left := 0
	if !r.found.gone(n.id) && r.tree.Attr(n.id, &a).Ok() {
		left = int(a.Nlink)
	}
	if obj, ok := r.tree.Object(n.id); ok {
		left += r.ahead.links[obj]
	}
	if r.ahead.left > 0 {
		// The host may be ahead: names whose end is still to be told are links, too.
		left = max(left, r.view.otherNames(n, sd.parent, sd.name))
	}
	sd.nlink = uint32(max(left, 0)) + 1
	if sd.nlink == 1 {
		r.unstage(n, "")
	}
	// What was put off is done before the step, and brings link counts that the view does not know yet.
	if r.view.linksOf(n) != sd.nlink || r.dirs.waits {
		r.expire(sd.parent, sd.name)
	}
}

func (r *Replayer) remove(p uint64, ev *notify.Event) {
	ok := r.run(ev, func(int) *step {
		s := &step{op: opRemove, src: side{parent: p, name: ev.Name}}
		now, before := r.view.lookup(p, ev.Name)
		n := r.object(ev.Object, p)
		if n == nil && (ev.Object.IsZero() || before != nil && before.isGhost()) {
			n = before
		}
		if n == nil || n.isDir() != ev.IsDir {
			n = r.view.ghost(ev.IsDir)
		}
		s.src.node = n
		if now != nil && now != n {
			r.expire(p, ev.Name)
		}
		r.before(&s.src)
		if n.isDir() {
			r.dirs.dropTree(n)
		}
		return s
	}, func(s *step) error {
		dir, err := r.dirs.open(p)
		if err != nil {
			return err
		}
		call := notify.Call{Op: notify.CallUnlink, Dir: dir, Name: ev.Name}
		if ev.IsDir {
			call.Op = notify.CallRmdir
		}
		return r.dirs.perform(call)
	})
	if ok && !ev.IsDir {
		r.links.cover(ev.Object, true)
	}
	if exists, late := r.view.after(p, ev.Name, ev.Time); late && exists {
		// The guest made the name anew before it could hear of this.
		r.recon.verify(r, ev)
	}
}

// touch returns which times make utimensat fire op.
func touch(op notify.Op) uint32 {
	switch op {
	case notify.OpModify:
		return notify.TouchMtime
	case notify.OpAccess:
		return notify.TouchAtime
	default: // ATTRIB
		return notify.TouchBoth
	}
}

func (r *Replayer) setattr(p uint64, name string, ev *notify.Event) {
	r.run(ev, func(int) *step {
		s := &step{op: opSetattr}
		if name == "." {
			s.src = side{node: r.view.node(p)}
		} else {
			s.src = r.target(p, name, ev)
		}
		r.fresh(&s.src, s.src.node, ev.Op)
		return s
	}, func(s *step) error {
		dir, err := r.dirs.open(p)
		if err != nil {
			return err
		}
		return r.dirs.perform(notify.Call{Op: notify.CallTouch, Dir: dir, Name: s.src.name, Mode: touch(ev.Op)})
	})
}

// onInode makes only the watchers of the inode itself hear op.
func (r *Replayer) onInode(n *vnode, op notify.Op) {
	ev := &notify.Event{Op: op, Name: stageLink, IsDir: n.isDir()}
	set := func() *step {
		s := &step{op: opSetattr, src: side{parent: stagingID, name: stageLink, node: n}}
		r.fresh(&s.src, n, op)
		return s
	}
	switch op {
	case notify.OpModify, notify.OpAttrib, notify.OpAccess:
		r.run(ev, func(int) *step { return set() }, func(s *step) error {
			return r.alone(n, notify.Call{Op: notify.CallTouch, Name: stageLink, Mode: touch(op)})
		})
	case notify.OpCloseWrite:
		if n.isReg() && !r.retold(n.id) {
			r.run(ev, func(int) *step {
				s := &step{op: opOpen, src: side{parent: stagingID, name: stageLink, node: n}}
				r.fresh(&s.src, n, op)
				return s
			}, func(s *step) error {
				return r.alone(n, notify.Call{Op: notify.CallOpen, Name: stageLink, Mode: unix.O_WRONLY})
			})
		}
	}
}

// linkCount makes the watchers of n itself hear that a link came or went, and if
// it was the last, that n is gone.
func (r *Replayer) linkCount(n *vnode) {
	var a fuse.Attr
	if r.tree.Attr(n.id, &a).Ok() && a.Nlink > 0 || len(r.view.edges(n)) > 0 {
		// What the host has removed, but the guest has by a name, is to end with that one.
		r.onInode(n, notify.OpAttrib)
		return
	}
	name := r.lastStaged(n)
	ev := &notify.Event{Op: notify.OpDelete, Name: name}
	r.run(ev, func(int) *step {
		s := &step{op: opRemove, src: side{parent: stagingID, name: name, node: n, nlink: 1}}
		return s
	}, func(s *step) error {
		return r.alone(n, notify.Call{Op: notify.CallUnlink, Name: name})
	})
}
