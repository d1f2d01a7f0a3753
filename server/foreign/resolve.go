package foreign

import (
	"time"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/replay"
)

// current is what Resolve found out about the event that Settle and Obtain are about.
type current struct {
	dir, newDir uint64 // nodeids, 0 if the guest does not know them
	ev          notify.Event
	settled     bool
	// victim is the file that the event takes a name from, if the guest knows it, and links
	// how many the guest's kernel takes it to have.
	victim uint64
	links  uint32
}

var _ replay.Resolver = (*Share)(nil)

// Exact implements replay.Resolver.
func (s *Share) Exact() bool { return s.objects.exact() }

// Resolve implements replay.Resolver.
func (s *Share) Resolve(v replay.View, ev *notify.Event) replay.Verdict {
	rm := ev.Remote
	s.objects.unpath()
	s.cur = current{}
	s.cur.dir = s.directory(v, ev.Dir, rm.DirPath)
	s.cur.newDir = s.directory(v, ev.NewDir, rm.NewDirPath)
	verdict := s.echo(v, ev)
	if verdict == replay.Keep {
		verdict = s.bindObjects(v, ev)
	}
	s.cur.ev = *ev
	return verdict
}

// directory finds the node of an event's directory, and binds it.
func (s *Share) directory(v replay.View, dir notify.Object, path string) uint64 {
	if dir.IsZero() {
		return 0
	}
	if dir.Type != typePath {
		if id := s.objects.find(dir); id != 0 {
			return id
		}
		if s.objects.exact() {
			return 0
		}
	}
	id, ok := v.Walk(path)
	if !ok || !s.objects.bind(dir, id, false) {
		return 0
	}
	return id
}

// bindObjects binds what the event is about as far as the guest knows it, and says whether any of
// it is known.
func (s *Share) bindObjects(v replay.View, ev *notify.Event) replay.Verdict {
	rm := ev.Remote
	ev.Time = rm.Arrived
	switch ev.Op {
	case notify.OpCreate:
		// The name stood for nothing before; who knows it has looked it up early, or is a link.
		s.bindSame(v, ev.Object, s.cur.dir, ev.Name, ev.IsDir, rm.From)
	case notify.OpRename:
		s.bindSame(v, ev.Object, s.cur.newDir, ev.NewName, ev.IsDir, rm.To)
		s.bindName(v, ev.Object, s.cur.dir, ev.Name, ev.IsDir, rm.To)
	case notify.OpExchange:
		s.bindName(v, ev.Object, s.cur.dir, ev.Name, ev.IsDir, rm.To)
		s.bindName(v, ev.NewObject, s.cur.newDir, ev.NewName, ev.NewIsDir, rm.From)
	default:
		s.bindName(v, ev.Object, s.cur.dir, ev.Name, ev.IsDir, rm.From)
	}
	switch ev.Op {
	case notify.OpDelete:
		s.takes(v, s.cur.dir, ev.Name)
	case notify.OpRename:
		s.takes(v, s.cur.newDir, ev.NewName)
	}
	known := s.objects.find(ev.Object)
	if s.cur.dir == 0 && s.cur.newDir == 0 && known == 0 {
		return replay.Drop
	}
	if at, ok := s.ledger.since(s.own(s.cur.dir), ev.Name, rm.Arrived); ok {
		// The guest did something to the name that has not come back: it was later than this.
		ev.Time = at.Add(-time.Nanosecond)
	} else if at, ok := s.ledger.since(s.own(s.cur.newDir), ev.NewName, rm.Arrived); ok {
		ev.Time = at.Add(-time.Nanosecond)
	}
	if s.cur.dir == 0 && ev.Op == notify.OpCreate && !ev.IsDir {
		// A link to something that the guest knows, in a directory that it does not know.
		ev.Op = notify.OpLinkCount
	}
	if own, ok := s.fs.Object(known); ok && ev.Op == notify.OpRename && s.cur.newDir != 0 {
		s.fs.Moved(own, s.own(s.cur.newDir), ev.NewName)
	}
	return replay.Keep
}

// takes notes what a name stood for that loses it.
func (s *Share) takes(v replay.View, dir uint64, name string) {
	if dir == 0 {
		return
	}
	if _, before := v.Child(dir, name); before.Node != 0 && !before.Ghost && !before.IsDir {
		s.cur.victim, s.cur.links = before.Node, before.Links
	}
}

// own is what the passthrough file system calls a node.
func (s *Share) own(nodeid uint64) notify.Object {
	if nodeid == 0 {
		return notify.Object{}
	}
	obj, _ := s.fs.Object(nodeid)
	return obj
}

// bindSame binds obj to what a name stands for now, if inode numbers prove it.
func (s *Share) bindSame(v replay.View, obj notify.Object, dir uint64, name string, isDir bool, st notify.State) {
	if dir == 0 || obj.IsZero() || !st.Same || !s.settler.inodesAgree() || s.objects.find(obj) != 0 {
		return
	}
	now, _ := v.Child(dir, name)
	if now.Node != 0 && !now.Ghost && now.IsDir == isDir && now.Ino == st.Ino {
		s.objects.bind(obj, now.Node, true)
	}
}

// bindName binds obj to what a name stood for when the event happened, unless something speaks
// against it.
func (s *Share) bindName(v replay.View, obj notify.Object, dir uint64, name string, isDir bool, st notify.State) {
	if dir == 0 || obj.IsZero() || s.objects.exact() || s.objects.find(obj) != 0 {
		return
	}
	now, before := v.Child(dir, name)
	if name == "." {
		return
	}
	for _, n := range []replay.Seen{before, now} {
		if n.Node == 0 || n.Ghost || n.IsDir != isDir {
			continue
		}
		if st.Same && s.settler.inodesAgree() {
			if n.Ino == st.Ino {
				s.objects.bind(obj, n.Node, true)
				return
			}
			continue
		}
		if n == before && s.objects.bind(obj, n.Node, false) {
			return
		}
	}
}

// isObject judges whether what was found under the name of the current event, with this inode
// number, is obj, and binds it if so.
func (s *Share) isObject(obj notify.Object, nodeid, ino uint64) bool {
	var st notify.State
	switch ev := &s.cur.ev; {
	case obj == ev.Object && (ev.Op == notify.OpRename || ev.Op == notify.OpExchange):
		st = ev.Remote.To
	case obj == ev.Object:
		st = ev.Remote.From
	}
	if st.Known && !st.Exists {
		return false // the name has another meaning, if it has any
	}
	if st.Same && s.settler.inodesAgree() {
		return ino == st.Ino && s.objects.bind(obj, nodeid, true)
	}
	if st.Known && !st.Same {
		return false
	}
	return s.objects.bind(obj, nodeid, false)
}

// echo recognises what the guest has done itself.
func (s *Share) echo(v replay.View, ev *notify.Event) replay.Verdict {
	loose := false
	if s.opts.Origin != "" {
		switch {
		case ev.Remote.Origin == s.opts.Origin:
			loose = true
		case ev.Pid != 0:
			return replay.Keep
		}
	}
	from, to := s.own(s.cur.dir), s.own(s.cur.newDir)
	if !s.ledger.explains(ev, from, to, loose) {
		return replay.Keep
	}
	rm := ev.Remote
	switch ev.Op {
	case notify.OpCreate:
		now, _ := v.Child(s.cur.dir, ev.Name)
		if now.Node != 0 && !now.Ghost && now.IsDir == ev.IsDir && (!rm.From.Same || !s.settler.inodesAgree() || rm.From.Ino == now.Ino) {
			s.objects.bind(ev.Object, now.Node, true)
			return replay.KnownEcho
		}
	case notify.OpDelete:
		if now, _ := v.Child(s.cur.dir, ev.Name); now.Node == 0 && rm.From.Known && !rm.From.Exists {
			return replay.KnownEcho
		}
	case notify.OpRename:
		now, _ := v.Child(s.cur.newDir, ev.NewName)
		if now.Node != 0 && !now.Ghost && now.IsDir == ev.IsDir && rm.To.Same && s.settler.inodesAgree() && rm.To.Ino == now.Ino {
			s.objects.bind(ev.Object, now.Node, true)
			return replay.KnownEcho
		}
	case notify.OpOpen, notify.OpAccess, notify.OpCloseNowrite:
		return replay.KnownEcho
	}
	return replay.Echo
}
