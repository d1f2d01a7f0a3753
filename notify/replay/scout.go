package replay

import (
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/heraldfs/heraldfs/notify"
)

const (
	// scoutReach is how many events the servant looks into when it is woken for one.
	scoutReach = 64
	// scoutEarly is the length up to which the source's goroutine looks into a batch itself: more would
	// keep it from reading the kernel's queue, which can overflow.
	scoutEarly = 8
)

// quest is a question that an event will raise when it is replayed.
type quest uint8

const (
	questNone   quest = iota
	questEntry        // what is it that was made?
	questAttr         // what is its link count now?
	questPages        // no question: its pages are to be dropped
	questStat         // no question: its attributes are to be dropped
	questVacant       // is there something at the name that it was moved away from?
)

// finding is what was asked ahead of the replay of an event, and the answer. Asking
// takes a round trip to the servant, unless it is done where the process's descriptors are. What
// is found out early must hold when it is used:
//
//   - An entry is what the name stood for, unless a later event changes the name; lookahead.changes
//     is asked again when it is used. The earlier one asks, the less can the host be ahead.
//   - An object without links never gets one again (gone).
//   - Pages that are dropped after the change that the event tells of are read anew from after it.
//   - An exchange leaves no name vacant, not even for a moment.
type finding struct {
	at     int // the event's index in its batch
	quest  quest
	obj    notify.Object
	node   uint64 // of questAttr, questPages, questStat
	parent uint64
	name   string
	// entry is one lookup if found.
	entry fuse.EntryOut
	found bool
	gone  bool // it has no links left, or nothing is at the name
	asked bool
	done  bool // entry was used
}

// plan says what will be asked about events[at]. It asks nobody who has to be waited for. ids is scratch.
func (r *Replayer) plan(f *finding, ev *notify.Event, ids []uint64) bool {
	*f = finding{obj: ev.Object}
	if ev.Op != notify.OpLinkCount && ev.Op.Mask()&r.mask == 0 || ev.Name == "." || ev.Remote != nil {
		return false // an event of another machine has to be resolved and settled first
	}
	one := func(obj notify.Object) (uint64, bool) {
		if obj.IsZero() {
			return 0, false
		}
		ids = r.cfg.Tree.NodeIDs(ids[:0], obj)
		if len(ids) != 1 {
			return 0, false
		}
		return ids[0], true
	}
	subject := func(dir notify.Object, name string, obj notify.Object) *vnode {
		if !obj.IsZero() {
			id, _ := one(obj)
			return r.view.node(id)
		}
		p, _ := one(dir)
		_, n := r.view.lookup(p, name)
		return n
	}
	var n *vnode
	switch ev.Op {
	case notify.OpCreate:
		f.quest, f.name = questEntry, ev.Name
		var ok bool
		f.parent, ok = one(ev.Dir)
		return ok && !ev.IsDir
	case notify.OpDelete:
		f.quest, n = questAttr, subject(ev.Dir, ev.Name, ev.Object)
	case notify.OpRename:
		f.quest, n = questAttr, subject(ev.NewDir, ev.NewName, notify.Object{})
	case notify.OpModify, notify.OpCloseWrite:
		f.quest, n = questPages, subject(ev.Dir, ev.Name, ev.Object)
		if n != nil && (!n.isReg() || !r.view.isOpened(n)) {
			return false
		}
	case notify.OpAttrib, notify.OpLinkCount:
		f.quest, n = questStat, subject(ev.Dir, ev.Name, ev.Object)
	}
	if n == nil || n.isGhost() || n.isDir() {
		return false
	}
	f.node = n.id
	return true
}

// ask does what was planned. It is called where the process's descriptors are.
func (r *Replayer) ask(f *finding) {
	f.asked = true
	switch f.quest {
	case questEntry:
		f.found = r.cfg.Tree.Obtain(f.obj, f.parent, f.name, &f.entry).Ok()
	case questAttr:
		var a fuse.Attr
		f.gone = !r.cfg.Tree.Attr(f.node, &a).Ok() || a.Nlink == 0
	case questPages:
		r.refused(r.cfg.Notify.InvalInode(f.node, 0, -1))
	case questStat:
		r.refused(r.cfg.Notify.InvalInode(f.node, -1, 0))
	case questVacant:
		var out fuse.EntryOut
		if r.cfg.Tree.Obtain(notify.Object{}, f.parent, f.name, &out).Ok() {
			r.fs.RawFileSystem.Forget(out.NodeId, 1)
		} else {
			f.gone = true
		}
	}
}

// scoutBatch looks into a short batch in the source's goroutine, while the replayer has nothing else to do.
func (r *Replayer) scoutBatch(events []notify.Event) []finding {
	found := r.emitFound[:0]
	if len(events) > scoutEarly || r.q.len() > 0 {
		return found
	}
	var f finding
	for i := range events {
		ev := &events[i]
		if r.plan(&f, ev, r.emitIDs) && !(f.quest == questEntry && f.obj.IsZero() && changedIn(events[i+1:], ev)) {
			f.at = i
			r.ask(&f)
			found = append(found, f)
		}
		if ev.Op == notify.OpRename && ev.Remote == nil && i == len(events)-1 && !ev.Dir.IsZero() && !ev.NewDir.IsZero() {
			if r.emitIDs = r.cfg.Tree.NodeIDs(r.emitIDs[:0], ev.Dir); len(r.emitIDs) == 1 {
				f = finding{at: i, quest: questVacant, parent: r.emitIDs[0], name: ev.Name}
				r.ask(&f)
				found = append(found, f)
			}
		}
	}
	r.emitFound = found
	return found
}

// changedIn reports whether one of the events changes the name of ev.
func changedIn(events []notify.Event, ev *notify.Event) bool {
	return slices.ContainsFunc(events, func(l notify.Event) bool {
		switch l.Op {
		case notify.OpCreate, notify.OpDelete, notify.OpRename, notify.OpExchange:
			return l.Dir == ev.Dir && l.Name == ev.Name || l.NewDir == ev.Dir && l.NewName == ev.Name
		}
		return false
	})
}

// scouts holds the findings about the batch in progress, in the order of its events.
type scouts struct {
	found []finding
	first int // findings before it are done with
	upTo  int // events before it were looked into
	now   int // the event in progress
	spare []finding
}

// reset takes what the source's goroutine has found about a new batch.
func (s *scouts) reset(found []finding) {
	s.found, s.first, s.upTo, s.now = append(s.found[:0], found...), 0, 0, -1
}

// add takes what was found about events that joined the batch, the first as the i-th.
func (s *scouts) add(found []finding, i int) {
	for _, f := range found {
		f.at += i
		s.found = append(s.found, f)
	}
}

// scout makes events[i] the one in progress, and has the servant look into it and those
// behind it.
func (r *Replayer) scout(events []notify.Event, i int) {
	if r.cfg.Agents != nil {
		return // whoever replays can ask himself
	}
	s := &r.found
	s.now = i
	r.passOver(i)
	if i < s.upTo {
		return
	}
	s.upTo = min(i+scoutReach, len(events))
	known, asks := s.found[s.first:], s.spare[:0]
	fresh := 0
	for j := i; j < s.upTo; j++ {
		had := false
		for len(known) > 0 && known[0].at == j {
			asks, known, had = append(asks, known[0]), known[1:], true
		}
		if had {
			continue
		}
		var f finding
		if !r.plan(&f, &events[j], r.idC) {
			continue
		}
		if f.quest == questEntry && (f.obj.IsZero() && r.ahead.later(j, events[j].Dir, f.name) || r.ahead.hurriedAt(events, j)) {
			continue
		}
		f.at = j
		asks, fresh = append(asks, f), fresh+1
	}
	asks = append(asks, known...)
	s.found, s.spare, s.first = asks, s.found, 0
	if fresh == 0 {
		return
	}
	r.far.serve.run(func() {
		for k := range asks {
			if f := &asks[k]; !f.asked {
				r.ask(f)
			}
		}
	})
}

// passOver gives back what was found about the events before the i-th and not used.
func (r *Replayer) passOver(i int) {
	s := &r.found
	for ; s.first < len(s.found) && s.found[s.first].at < i; s.first++ {
		if f := &s.found[s.first]; f.quest == questEntry && f.found && !f.done {
			r.far.Forget(f.entry.NodeId, 1)
		}
	}
}

// finding returns what was found out for the event in progress, or nil.
func (s *scouts) finding(q quest) *finding {
	for k := s.first; k < len(s.found) && s.found[k].at <= s.now; k++ {
		if f := &s.found[k]; f.at == s.now && f.quest == q {
			return f
		}
	}
	return nil
}

// gone reports whether it is known that the object of nodeid has no links left.
func (s *scouts) gone(nodeid uint64) bool {
	f := s.finding(questAttr)
	return f != nil && f.gone && f.node == nodeid
}

// dropped reports whether what op makes stale of nodeid is dropped already.
func (s *scouts) dropped(nodeid uint64, op notify.Op) bool {
	q := questPages
	if op == notify.OpAttrib || op == notify.OpLinkCount {
		q = questStat
	}
	f := s.finding(q)
	return f != nil && f.node == nodeid
}

// entry hands over what the name was found to stand for; ok says that it was asked.
func (s *scouts) entry(obj notify.Object, parent uint64, name string, out *fuse.EntryOut) (found, ok bool) {
	f := s.finding(questEntry)
	if f == nil || f.done || f.obj != obj || f.parent != parent || f.name != name {
		return false, false
	}
	f.done = true
	if f.found {
		*out = f.entry
	}
	return f.found, true
}

// vacant reports whether nothing was at the name that the event in progress moved away.
func (s *scouts) vacant() bool {
	f := s.finding(questVacant)
	return f != nil && f.gone
}
