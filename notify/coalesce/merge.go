package coalesce

import (
	"slices"

	"github.com/heraldfs/heraldfs/notify"
)

// entry is a place in a directory.
type entry struct {
	dir  notify.Object
	name string
}

// merger holds the tables for one batch in which the kernel may have merged.
// They are kept between batches so that a busy queue costs no allocation.
type merger struct {
	raws    []notify.Raw
	told    int                     // so many of them are of earlier batches
	index   map[notify.Object]int32 // into objs
	objs    []object
	recs    []record
	bound   map[entry]int32 // object that the batch put there, as far as it tells
	changed map[notify.Object]int32
	lates   []late
	lateAt  map[entry]int32 // the late DELETE that is possible there now
	hidden  []hidden
	verify  map[entry]struct{}

	dirRename int32 // last RENAME of a directory
}

// object is what the batch told of one object so far.
type object struct {
	id                        notify.Object
	at                        entry // where the last entry record left it; no dir: not known
	lastLive, lastIn          int32 // last record of it but a plain DELETE, and inside it
	lastCreate, removed       int32 // last CREATE, first record that it was gone by
	overBy                    int32 // last RENAME of a directory before its DELETE_SELF
	renames                   int32 // last RENAME of it, chained by record.prev
	lates                     int32 // its late DELETEs, chained by late.next
	nLates                    int32
	nextRename                int32 // while records are read backwards
	nCreate, nDelete, nRename int
	linked                    bool // it has, or had, more than one name
	linkCount                 bool // its link count changed while it was not overwritten
	over                      bool // another object was renamed over it
	gone                      bool // it told DELETE_SELF
	deleted                   bool // the batch has a DELETE of it
	verify                    bool
	proven                    bool // a lost rename of it was told that its renames alone do not prove
}

// record is what is known of raws[i].
type record struct {
	obj         int32
	twin        int32 // an exchange's other RENAME
	prev        int32 // the object's RENAME before this one
	self        int32 // of a record about a directory itself: the next RENAME of that
	before      int32 // hidden renames to tell first
	skip        bool  // the other RENAME of an exchange
	deleteFirst bool
	late        notify.Mask // bits that are told later
}

// late is an operation that is told behind a later record.
type late struct {
	rec, obj int32
	bit      notify.Mask
	at       entry
	lower    int32 // record that last put the object there
	upper    int32 // first record that proves it gone; none: -1
	away     bool  // the object was renamed away last
	settled  bool  // upper is final
	dropped  bool
	before   int32 // hidden renames to tell first
	pos      int32 // told behind this record
	rank     int32 // order at the same pos
	next     int32
}

// hidden is a rename that was merged into an equal one: rec is that one.
type hidden struct {
	rec, next int32
}

const none = int32(-1)

// merged handles a batch of fanotify records.
func (c *Coalescer) merged(raws []notify.Raw) {
	m := &c.merge
	raws, told := c.carriedFor(raws)
	m.reset(raws, told)
	m.pointSelf()
	for i := range raws {
		if i == told {
			m.dirRename = none // what follows is not behind it in the kernel's queue
		}
		m.read(int32(i))
	}
	m.place()
	first := len(c.out)
	c.tell(m)
	m.mark(c.out[first:])
	c.carry(m)
	if len(raws) > c.limit {
		*m = merger{}
	}
	m.raws = nil
}

func (m *merger) reset(raws []notify.Raw, told int) {
	if m.index == nil {
		m.index = make(map[notify.Object]int32)
		m.bound = make(map[entry]int32)
		m.changed = make(map[notify.Object]int32)
		m.lateAt = make(map[entry]int32)
		m.verify = make(map[entry]struct{})
	}
	clear(m.index)
	clear(m.bound)
	clear(m.changed)
	clear(m.lateAt)
	clear(m.verify)
	clear(m.objs)
	m.told = told
	m.raws, m.objs, m.lates, m.hidden = raws, m.objs[:0], m.lates[:0], m.hidden[:0]
	m.dirRename = none
	m.recs = slices.Grow(m.recs[:0], len(raws))[:len(raws)]
	for i := range m.recs {
		m.recs[i] = record{obj: m.object(subject(&raws[i])), twin: none, prev: none, self: none, before: none}
	}
}

// subject is the object that r is about.
func subject(r *notify.Raw) notify.Object {
	if r.Object.IsZero() && aboutDir(r) {
		return r.Dir
	}
	return r.Object
}

// aboutDir reports whether r is about the directory r.Dir itself.
func aboutDir(r *notify.Raw) bool { return r.Name == "." || r.Name == "" && !r.Dir.IsZero() }

func (m *merger) object(id notify.Object) int32 {
	if id.IsZero() {
		return none
	}
	i, ok := m.index[id]
	if !ok {
		i = int32(len(m.objs))
		m.index[id] = i
		m.objs = append(m.objs, object{
			id: id, lastLive: none, lastIn: none, lastCreate: none, removed: none, overBy: none,
			renames: none, lates: none, nextRename: none,
		})
	}
	return i
}

// pointSelf gives each record about a directory itself the entry that the
// directory has until its next rename, which is where its watchers knew it. It also
// notes which objects the batch has a DELETE of.
func (m *merger) pointSelf() {
	for i := len(m.raws) - 1; i >= 0; i-- {
		r, o := &m.raws[i], m.recs[i].obj
		switch {
		case o == none:
		case r.Mask&notify.Rename != 0:
			m.objs[o].nextRename = int32(i)
		case r.Mask&notify.Delete != 0:
			m.objs[o].deleted = true
		case aboutDir(r):
			m.recs[i].self = m.objs[o].nextRename
		}
	}
}

// tell emits the batch in the order found.
func (c *Coalescer) tell(m *merger) {
	next := 0
	for i := m.told; i < len(m.raws); i++ {
		r, rec := &m.raws[i], &m.recs[i]
		c.tellHidden(m, rec.before)
		switch {
		case rec.skip:
		case rec.twin != none:
			ev := base(r, notify.OpExchange)
			twin := &m.raws[rec.twin]
			ev.NewDir, ev.NewName = r.NewDir, r.NewName
			ev.NewObject, ev.NewIsDir = twin.Object, twin.Mask&notify.IsDir != 0
			c.entryChanged(ev.Dir)
			c.entryChanged(ev.NewDir)
			c.out = append(c.out, ev)
		case r.Mask&notify.Rename != 0:
			c.tellRename(r)
		case rec.deleteFirst:
			c.expand(r, r.Mask&notify.Delete)
			c.expand(r, r.Mask&^notify.Delete)
		case aboutDir(r) && rec.self != none:
			self, to := *r, &m.raws[rec.self]
			if !to.Dir.IsZero() {
				self.Dir, self.Name, self.Object = to.Dir, to.Name, to.Object
			}
			c.expand(&self, r.Mask&^rec.late)
		default:
			c.expand(r, r.Mask&^rec.late)
		}
		for ; next < len(m.lates) && m.lates[next].pos == int32(i); next++ {
			if l := &m.lates[next]; !l.dropped {
				c.tellHidden(m, l.before)
				c.expand(&m.raws[l.rec], l.bit)
			}
		}
	}
}

func (c *Coalescer) tellHidden(m *merger, i int32) {
	for ; i != none; i = m.hidden[i].next {
		c.tellRename(&m.raws[m.hidden[i].rec])
	}
}

func (c *Coalescer) tellRename(r *notify.Raw) {
	ev := base(r, notify.OpRename)
	ev.NewDir, ev.NewName = r.NewDir, r.NewName
	c.move(ev, false)
}

// mark sets Verify on the last event of every name of which a merge may have hidden
// something.
func (m *merger) mark(events []notify.Event) {
	for i := range m.objs {
		o := &m.objs[i]
		o.verify = o.verify || o.nRename > 1 || o.nCreate > 0 && o.nDelete > 0 ||
			o.nCreate > 0 && o.linkCount && (o.over || o.nRename > 0)
	}
	for i := m.told; i < len(m.raws); i++ {
		r, o := &m.raws[i], m.recs[i].obj
		both := r.Mask&notify.Create != 0 && r.Mask&notify.Delete != 0
		if o == none && !both || o != none && !m.objs[o].verify || r.Dir.IsZero() && r.NewDir.IsZero() {
			continue
		}
		if aboutDir(r) {
			continue
		}
		m.verify[entry{r.Dir, r.Name}] = struct{}{}
		if r.Mask&notify.Rename != 0 {
			m.verify[entry{r.NewDir, r.NewName}] = struct{}{}
		}
	}
	delete(m.verify, entry{})
	for i := len(events) - 1; i >= 0 && len(m.verify) > 0; i-- {
		ev := &events[i]
		for _, e := range [...]entry{{ev.Dir, ev.Name}, {ev.NewDir, ev.NewName}} {
			if _, ok := m.verify[e]; ok {
				ev.Verify = true
				delete(m.verify, e)
			}
		}
	}
}
