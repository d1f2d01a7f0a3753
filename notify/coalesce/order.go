package coalesce

import "github.com/heraldfs/heraldfs/notify"

// maxHidden bounds the chain of lost renames that is looked for, and the
// renames of one object that are compared.
//
// maxAhead bounds how far ahead is looked for the record that proves something.
//
// maxLinks bounds the late DELETEs of one object that follow its renames, and
// maxDepth the directories above one.
const (
	maxHidden  = 8
	maxCompare = 32
	maxLinks   = 64
	maxDepth   = 2048
	maxAhead   = 1024
)

// read takes record k into account.
func (m *merger) read(k int32) {
	r, rec := &m.raws[k], &m.recs[k]
	for _, dir := range [...]notify.Object{r.Dir, r.NewDir} {
		if i, ok := m.index[dir]; ok && !dir.IsZero() {
			m.objs[i].lastIn = k
		}
	}
	switch {
	case r.Mask&notify.Rename != 0:
		m.readRename(k)
	case rec.obj == none:
	case r.Dir.IsZero() || aboutDir(r):
		m.readNameless(k)
	default:
		m.readNamed(k)
	}
	if r.Mask&entryBits != 0 {
		if !r.Dir.IsZero() {
			m.changed[r.Dir] = k
		}
		if !r.NewDir.IsZero() {
			m.changed[r.NewDir] = k
		}
	}
	if rec.obj != none && r.Mask&^notify.IsDir != notify.Delete {
		m.objs[rec.obj].lastLive = k
	}
}

func (m *merger) readRename(k int32) {
	r, rec := &m.raws[k], &m.recs[k]
	if rec.obj == none {
		return
	}
	from, to := entry{r.Dir, r.Name}, entry{r.NewDir, r.NewName}
	if i := m.exchanged(k); i != none {
		m.recs[i].twin, rec.skip = k, true
	} else if o := &m.objs[rec.obj]; !r.Dir.IsZero() && !o.at.dir.IsZero() && o.at != from {
		was := o.proven
		rec.before = m.findHidden(rec.obj, from, k)
		m.objs[rec.obj].proven = was // the renames alone prove it
	}
	o := &m.objs[rec.obj]
	for l := o.lates; l != none && !r.Dir.IsZero(); l = m.lates[l].next {
		if q := &m.lates[l]; q.at != from && !q.away && q.upper == none {
			o.linked = true
		}
	}
	o.nRename++
	o.verify = o.verify || o.nDelete > 0
	rec.prev, o.renames = o.renames, k
	if rec.skip {
		o.over = false
		m.leave(rec.obj, from)
		m.put(rec.obj, to, k)
		return
	}
	m.overwritten(k, to)
	m.transfer(rec.obj, from, to, k)
	if r.Mask&notify.IsDir != 0 {
		m.dirRename = k
	}
}

// overwritten carries out the lost renames of a file that k, a RENAME, has replaced. The kernel tells the end of the
// replaced file next, and under no name: if the batch has left it at another entry, it had come to this one.
func (m *merger) overwritten(k int32, to entry) {
	if int(k)+1 == len(m.raws) || int(k) < m.told || to.dir.IsZero() {
		return
	}
	r, i := &m.raws[k+1], m.recs[k+1].obj
	if i == none || i == m.recs[k].obj || !r.Dir.IsZero() || r.Mask&notify.DeleteSelf == 0 || r.Mask&(notify.Rename|notify.IsDir) != 0 {
		return
	}
	o := &m.objs[i]
	if o.deleted || o.linked || o.linkCount || o.over || o.at.dir.IsZero() || o.at == to || !m.unlinkTold(k+2, o.at.dir) {
		return
	}
	m.tellFirst(k, m.findHidden(i, to, k))
}

// tellFirst has hidden renames told before k, and before those that are already.
func (m *merger) tellFirst(k, head int32) {
	if head == none {
		return
	}
	last := head
	for m.hidden[last].next != none {
		last = m.hidden[last].next
	}
	m.hidden[last].next, m.recs[k].before = m.recs[k].before, head
}

// unlinkTold reports whether the DELETE of an unlink in dir, of which the DELETE_SELF stood before record k, would be in
// the batch: both are told under one hold of the directory's lock.
func (m *merger) unlinkTold(k int32, dir notify.Object) bool {
	for i := k; int(i) < len(m.raws) && i-k < maxAhead; i++ {
		if r := &m.raws[i]; r.Mask&entryBits != 0 && (r.Dir == dir || r.NewDir == dir) {
			return true
		}
	}
	return false
}

// exchanged returns the RENAME that k undoes with another object, under
// one hold of the locks of both directories.
func (m *merger) exchanged(k int32) int32 {
	r := &m.raws[k]
	if r.Dir.IsZero() || r.NewDir.IsZero() {
		return none
	}
	i, ok := m.changed[r.Dir]
	if j, too := m.changed[r.NewDir]; !ok || !too || i != j || int(i) < m.told {
		return none
	}
	q := &m.raws[i]
	o := &m.objs[m.recs[k].obj]
	if q.Mask&notify.Rename == 0 || q.Pid != r.Pid || m.recs[i].skip || m.recs[i].twin != none ||
		q.Object.IsZero() || q.Object == r.Object ||
		q.Dir != r.NewDir || q.Name != r.NewName || q.NewDir != r.Dir || q.NewName != r.Name {
		return none
	}
	if !o.linked && !o.at.dir.IsZero() && o.at != (entry{r.Dir, r.Name}) {
		return none
	}
	return i
}

// readNameless handles what only the object itself was told.
func (m *merger) readNameless(k int32) {
	r, rec := &m.raws[k], &m.recs[k]
	o := &m.objs[rec.obj]
	if r.Mask&notify.Attrib != 0 && !aboutDir(r) && !o.over {
		o.linkCount = true
	}
	o.gone = o.gone || r.Mask&notify.DeleteSelf != 0
	if bits := r.Mask &^ notify.IsDir; bits&notify.DeleteSelf != 0 && bits != notify.DeleteSelf {
		if k > 0 && m.dirRename == k-1 {
			o.overBy = k - 1 // then the ATTRIB is its link count
		}
		rec.late = notify.DeleteSelf
		m.lates = append(m.lates, late{
			rec: k, obj: rec.obj, bit: notify.DeleteSelf | r.Mask&notify.IsDir, lower: k, upper: none,
			before: none, next: none,
		})
	} else if bits == notify.DeleteSelf && o.removed == none {
		o.removed, o.overBy = k, m.dirRename
	}
}

func (m *merger) readNamed(k int32) {
	r, rec := &m.raws[k], &m.recs[k]
	o, at := &m.objs[rec.obj], entry{r.Dir, r.Name}
	create, remove := r.Mask&notify.Create != 0, r.Mask&notify.Delete != 0
	if create {
		was, taken := m.bound[at]
		again := taken && was == rec.obj
		rec.deleteFirst = again && remove
		if taken && !again {
			m.leaveHidden(was, at, k)
		}
		if again || o.nCreate > 0 || o.linkCount || !o.at.dir.IsZero() && o.at != at {
			o.linked = true
		}
		o.nCreate++
		o.lastCreate = k
		m.put(rec.obj, at, k)
	}
	if !remove {
		return
	}
	o.nDelete++
	switch {
	case rec.deleteFirst:
	case r.Mask&^notify.IsDir == notify.Delete:
		if !o.at.dir.IsZero() && o.at != at {
			m.tellBefore(k, rec.obj, m.findHidden(rec.obj, at, k))
		}
		if was, ok := m.bound[at]; ok && was == rec.obj {
			delete(m.bound, at)
		}
		if o.removed == none {
			o.removed = k
		}
		o.at = entry{}
	default:
		rec.late = notify.Delete
		m.lates = append(m.lates, late{
			rec: k, obj: rec.obj, bit: notify.Delete | r.Mask&notify.IsDir, at: at,
			lower: k, upper: none, before: none, next: none,
		})
		if o.nLates++; o.nLates <= maxLinks {
			last := int32(len(m.lates) - 1)
			m.lates[last].next, o.lates = o.lates, last
			m.lateAt[at] = last
		}
	}
}

// transfer records that o went from one entry to another with record k.
func (m *merger) transfer(o int32, from, to entry, k int32) {
	m.leave(o, from)
	if to.dir.IsZero() {
		m.objs[o].at = entry{}
		return
	}
	if was, ok := m.bound[to]; ok && was != o {
		m.objs[was].over = true
		if m.objs[was].at == to {
			m.objs[was].at = entry{}
		}
		if m.raws[k].Mask&notify.IsDir != 0 && m.objs[was].removed == none {
			m.objs[was].removed = k
		}
	}
	m.put(o, to, k)
}

// leave records that o was renamed away from an entry.
func (m *merger) leave(o int32, from entry) {
	if was, ok := m.bound[from]; ok && was == o {
		delete(m.bound, from)
	}
	for i := m.objs[o].lates; i != none; i = m.lates[i].next {
		if l := &m.lates[i]; l.at == from && !l.settled {
			l.away = true
		}
	}
}

// put records that o appeared at an entry with record k.
func (m *merger) put(o int32, at entry, k int32) {
	if i, ok := m.lateAt[at]; ok && m.lates[i].obj != o {
		if l := &m.lates[i]; l.upper == none {
			l.upper = k
			// A rename can overwrite, but a CREATE found the entry empty.
			l.settled = !l.away && m.recs[k].obj == o && m.raws[k].Mask&notify.Create != 0
		}
		delete(m.lateAt, at)
	}
	for i := m.objs[o].lates; i != none; i = m.lates[i].next {
		switch l := &m.lates[i]; {
		case l.at != at || l.settled:
		case l.away || l.upper != none:
			l.lower, l.upper, l.away = k, none, false
			m.lateAt[at] = i
		case l.rec != k:
			// It cannot appear where it is: it was deleted in between.
			l.upper, l.settled = k, true
		}
	}
	m.bound[at] = o
	m.objs[o].at = at
}

// findHidden looks for the one chain of o's renames that leads from where it is
// to an entry where record k found it, and carries it out before k.
func (m *merger) findHidden(o int32, to entry, k int32) int32 {
	ob := &m.objs[o]
	if ob.linked {
		return none
	}
	var chain [maxHidden]int32
	n, at := 0, ob.at
	for at != to {
		next := m.onlyRename(o, at)
		if n == maxHidden || next == none {
			ob.linked = ob.linked || m.raws[k].Mask&notify.IsDir == 0
			return none
		}
		chain[n] = next
		n++
		at = entry{m.raws[next].NewDir, m.raws[next].NewName}
	}
	head := none
	ob.proven = ob.proven || n > 0
	for i := n - 1; i >= 0; i-- {
		m.hidden = append(m.hidden, hidden{rec: chain[i], next: head})
		head = int32(len(m.hidden) - 1)
	}
	for _, i := range chain[:n] {
		q := &m.raws[i]
		m.transfer(o, entry{q.Dir, q.Name}, entry{q.NewDir, q.NewName}, k)
	}
	return head
}

// tellBefore has hidden renames told before a DELETE at k, and before the link count
// that the same unlink told just before it.
func (m *merger) tellBefore(k, o, head int32) {
	at := k
	for i := k - 1; int(i) >= m.told && k-i <= maxCompare; i-- {
		r := &m.raws[i]
		nameless := r.Dir.IsZero() && r.Mask&notify.Rename == 0
		if r.Mask&entryBits != 0 || m.recs[i].obj == o && !nameless {
			break
		}
		if m.recs[i].obj == o {
			at = i
		}
	}
	m.recs[at].before = head
}

// leaveHidden carries out the rename of which record k, a CREATE at the same
// entry, is the proof.
func (m *merger) leaveHidden(o int32, at entry, k int32) {
	if _, ok := m.lateAt[at]; ok || m.objs[o].linked || m.objs[o].at != at || m.objs[o].removed != none {
		return
	}
	if i := m.onlyRename(o, at); i != none {
		q := &m.raws[i]
		m.tellFirst(k, m.findHidden(o, entry{q.NewDir, q.NewName}, k))
	}
}

// onlyRename returns the rename of o away from an entry, if there is but one, and
// its other end is not known to be taken.
func (m *merger) onlyRename(o int32, at entry) int32 {
	found := none
	n := 0
	for i := m.objs[o].renames; i != none; i = m.recs[i].prev {
		if n++; n > maxCompare {
			return none
		}
		q := &m.raws[i]
		if q.Dir != at.dir || q.Name != at.name {
			continue
		}
		if q.NewDir.IsZero() || m.recs[i].skip || m.recs[i].twin != none {
			return none
		}
		if found != none && (m.raws[found].NewDir != q.NewDir || m.raws[found].NewName != q.NewName) {
			return none
		}
		found = i
	}
	if found == none {
		return none
	}
	to := entry{m.raws[found].NewDir, m.raws[found].NewName}
	if was, ok := m.bound[to]; ok && was != o {
		// A merged DELETE may have removed it by then.
		if i, ok := m.lateAt[to]; !ok || m.lates[i].obj != was || m.lates[i].away {
			return none
		}
	}
	return found
}
