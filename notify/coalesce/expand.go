package coalesce

import "github.com/heraldfs/heraldfs/notify"

// canonical is the order in which the operations of one merged record are told.
var canonical = [...]struct {
	bit notify.Mask
	op  notify.Op
}{
	{notify.Create, notify.OpCreate},
	{notify.Open, notify.OpOpen},
	{notify.Access, notify.OpAccess},
	{notify.Modify, notify.OpModify},
	{notify.Attrib, notify.OpAttrib},
	{notify.CloseNowrite, notify.OpCloseNowrite},
	{notify.CloseWrite, notify.OpCloseWrite},
	{notify.Delete, notify.OpDelete},
	{notify.DeleteSelf, notify.OpDeleteSelf},
	{notify.Unmount, notify.OpUnmount},
}

// expand tells the operations of r that mask selects, in canonical order.
func (c *Coalescer) expand(r *notify.Raw, mask notify.Mask) {
	switch {
	case mask&(notify.Rename|notify.MovedFrom) != 0 && mask&notify.MovedTo == 0:
		ev := base(r, notify.OpRename)
		ev.NewDir, ev.NewName = r.NewDir, r.NewName
		c.move(ev, true)
		return
	case mask&notify.MovedTo != 0:
		ev := base(r, notify.OpRename)
		ev.Dir, ev.Name = notify.Object{}, ""
		ev.NewDir, ev.NewName = r.Dir, r.Name
		c.move(ev, true)
		return
	}
	for i := range canonical {
		if mask&canonical[i].bit != 0 {
			c.emit(base(r, canonical[i].op))
		}
	}
}

// rename tells a pair of inotify halves.
func (c *Coalescer) rename(from, to *notify.Raw) {
	ev := base(from, notify.OpRename)
	ev.NewDir, ev.NewName = to.Dir, to.Name
	if ev.Object.IsZero() {
		ev.Object = to.Object
	}
	c.move(ev, true)
}

// base makes the event of one operation. Whatever form the backend gives to
// a record about an object itself becomes one form: "." for a directory, no
// directory at all for what has no name.
func base(r *notify.Raw, op notify.Op) notify.Event {
	ev := notify.Event{
		Op: op, IsDir: r.Mask&notify.IsDir != 0,
		Dir: r.Dir, Name: r.Name, Object: r.Object, Cookie: r.Cookie, Pid: r.Pid,
	}
	if ev.Name == "" && !ev.Dir.IsZero() {
		ev.Name = "."
	}
	switch {
	case op == notify.OpAttrib && ev.Dir.IsZero():
		ev.Op = notify.OpLinkCount
	case op == notify.OpDeleteSelf:
		if ev.Object.IsZero() {
			ev.Object = ev.Dir
		}
		ev.Dir, ev.Name = notify.Object{}, ""
	}
	return ev
}

// emit appends ev unless it repeats the event before it.
func (c *Coalescer) emit(ev notify.Event) {
	if ev.Op == notify.OpCreate || ev.Op == notify.OpDelete {
		c.entryChanged(ev.Dir)
	} else if n := len(c.out); n > c.start {
		last := &c.out[n-1]
		if last.Op == ev.Op && last.IsDir == ev.IsDir && last.Dir == ev.Dir &&
			last.Name == ev.Name && last.Object == ev.Object {
			return
		}
	}
	c.out = append(c.out, ev)
}

// move appends a rename, or makes an exchange of it and the one it undoes.
// pairs is false where the caller knows which renames are exchanges.
func (c *Coalescer) move(ev notify.Event, pairs bool) {
	if m := c.undone(&ev); m != nil {
		known := !m.object.IsZero() && !ev.Object.IsZero()
		differ := m.isDir != ev.IsDir || known && m.object != ev.Object
		here := m.call == c.calls
		switch {
		case here && !pairs:
		case here && differ:
			first := &c.out[m.index]
			first.Op, first.NewObject, first.NewIsDir = notify.OpExchange, ev.Object, ev.IsDir
			c.entryChanged(ev.Dir)
			return
		case differ || !known:
			ev.Verify = true
		}
	}
	c.entryChanged(ev.Dir)
	c.entryChanged(ev.NewDir)
	if !ev.Dir.IsZero() && !ev.NewDir.IsZero() {
		if !c.recent[c.turn].used {
			c.moves++
		}
		c.recent[c.turn] = recentMove{
			used: true, call: c.calls, index: len(c.out), isDir: ev.IsDir, object: ev.Object,
			from: ev.Dir, fname: ev.Name, to: ev.NewDir, toname: ev.NewName,
		}
		c.turn = (c.turn + 1) % len(c.recent)
	}
	c.out = append(c.out, ev)
}

// undone returns the recent rename that ev goes exactly back.
func (c *Coalescer) undone(ev *notify.Event) *recentMove {
	if c.moves == 0 {
		return nil
	}
	for i := range c.recent {
		m := &c.recent[i]
		if m.used && m.from == ev.NewDir && m.to == ev.Dir && m.fname == ev.NewName && m.toname == ev.Name {
			return m
		}
	}
	return nil
}

// entryChanged forgets the recent renames that concern dir.
func (c *Coalescer) entryChanged(dir notify.Object) {
	if c.moves == 0 || dir.IsZero() {
		return
	}
	for i := range c.recent {
		if m := &c.recent[i]; m.used && (m.from == dir || m.to == dir) {
			*m = recentMove{}
			c.moves--
		}
	}
}

func (c *Coalescer) forgetMoves() {
	c.recent = [4]recentMove{}
	c.moves = 0
}
