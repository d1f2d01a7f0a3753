package coalesce

import (
	"cmp"
	"math"
	"slices"

	"github.com/heraldfs/heraldfs/notify"
)

// place decides where the late operations are told.
func (m *merger) place() {
	for i := range m.lates {
		if l := &m.lates[i]; l.bit&notify.Delete != 0 {
			m.placeDelete(l)
		}
	}
	for i := range m.lates {
		m.pushUp(int32(i))
	}
	for i := range m.lates {
		l := &m.lates[i]
		if d, ok := m.index[l.at.dir]; ok && !l.dropped && l.bit&notify.Delete != 0 {
			m.objs[d].lastIn = max(m.objs[d].lastIn, l.pos)
		}
	}
	for i := range m.lates {
		if l := &m.lates[i]; l.bit&notify.DeleteSelf != 0 {
			m.placeSelf(l)
		}
	}
	m.sortLates()
}

// placeSelf puts a DELETE_SELF where the object's last DELETE is, if that is late,
// else behind all that is known of the object. A directory's comes before its DELETE always.
func (m *merger) placeSelf(l *late) {
	o := &m.objs[l.obj]
	l.pos = max(l.rec, o.lastLive)
	if l.bit&notify.IsDir != 0 {
		l.pos, l.rank = max(l.pos, o.lastIn), math.MaxInt32
		if o.removed != none {
			l.pos = max(l.rec, min(l.pos, o.removed-1))
		}
	}
	for i := o.lates; i != none; i = m.lates[i].next {
		if d := &m.lates[i]; !d.dropped && d.pos >= l.pos {
			l.pos, l.rank = d.pos, d.rank-1
		}
	}
}

func (m *merger) placeDelete(l *late) {
	o, r := &m.objs[l.obj], &m.raws[l.rec]
	dir := l.bit&notify.IsDir != 0
	l.pos = l.lower
	switch {
	case l.away:
		head := none
		if !o.at.dir.IsZero() {
			head = m.findWayBack(l)
		}
		if head == none {
			l.pos = l.rec
			if r.Mask&notify.Create != 0 && !dir {
				l.dropped, m.recs[l.rec].deleteFirst = true, true
			}
			return
		}
		l.pos = max(l.pos, o.lastLive)
		m.tellBeforeLate(l, head)
	case o.linked:
		l.pos = max(l.pos, o.lastCreate)
	default:
		l.pos = max(l.pos, o.lastLive)
	}
	if dir {
		l.pos = max(l.pos, o.lastIn)
	}
	l.pos = max(l.rec, min(l.pos, m.limitOf(l)))
}

// findWayBack looks for the lost renames of an object to the entry that its DELETE names. What appeared there after all
// that is known of the object was not in the way.
func (m *merger) findWayBack(l *late) int32 {
	last := int32(len(m.raws) - 1)
	was, taken := m.bound[l.at]
	if !taken || l.upper == none || l.upper <= m.objs[l.obj].lastLive {
		return m.findHidden(l.obj, l.at, last)
	}
	delete(m.bound, l.at)
	head := m.findHidden(l.obj, l.at, last)
	m.bound[l.at] = was
	return head
}

// tellBeforeLate has hidden renames told before a late DELETE and the link count
// that the same unlink told, which is the last record of the object then.
func (m *merger) tellBeforeLate(l *late, head int32) {
	if r := &m.raws[l.pos]; m.recs[l.pos].obj == l.obj && r.Dir.IsZero() && r.Mask&notify.Rename == 0 {
		m.recs[l.pos].before = head
		return
	}
	l.before = head
}

// limitOf is the last record that l can be told behind: what takes its entry
// or removes its directory, or a directory above, comes after it.
func (m *merger) limitOf(l *late) int32 {
	limit := int32(len(m.raws) - 1)
	for range min(len(m.lates), maxDepth) {
		if l.upper != none {
			limit = min(limit, l.upper-1)
		}
		i, ok := m.index[l.at.dir]
		if !ok {
			return limit
		}
		dir := &m.objs[i]
		removed := dir.removed
		if dir.nDelete == 0 && dir.gone {
			// No rmdir: a directory was renamed over it.
			if removed = dir.overBy; removed == none {
				removed = m.dirRename
			}
		}
		if removed > l.rec {
			limit = min(limit, removed-1)
		}
		if dir.lates == none {
			return limit
		}
		l = &m.lates[dir.lates]
	}
	return limit
}

// pushUp puts the removals of the directories above i behind it. Ranks are even, to leave
// room for a DELETE_SELF before each.
func (m *merger) pushUp(i int32) {
	for range min(len(m.lates), maxDepth) {
		child := &m.lates[i]
		if child.bit&notify.Delete == 0 {
			return
		}
		d, ok := m.index[child.at.dir]
		if !ok || child.dropped || m.objs[d].lates == none {
			return
		}
		i = m.objs[d].lates
		parent := &m.lates[i]
		if parent.pos < child.pos {
			parent.pos, parent.rank = child.pos, child.rank+2
		} else if parent.pos == child.pos {
			parent.rank = max(parent.rank, child.rank+2)
		}
	}
}

// sortLates orders the late operations by where they are told.
func (m *merger) sortLates() {
	slices.SortStableFunc(m.lates, func(a, b late) int {
		return cmp.Or(cmp.Compare(a.pos, b.pos), cmp.Compare(a.rank, b.rank), cmp.Compare(a.rec, b.rec))
	})
}
