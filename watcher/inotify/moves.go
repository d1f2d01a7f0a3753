package inotify

import "github.com/heraldfs/heraldfs/notify"

const (
	// maxMoved bounds the directories that count as moved of late.
	maxMoved = 4096
	// maxDepth bounds the way up from a directory, which a parent that is not true any more can make a circle.
	maxDepth = 1024
)

// dirMove is the rename of a directory, of which one side may not be marked.
type dirMove struct {
	cookie   uint32
	from, to notify.Object
	// told says that MOVE_SELF has come.
	told bool
}

// moves are the latest renames of directories. MOVE_SELF follows both halves, and names neither: renames within a
// directory are told between the records of another, those from one directory to another exclude each other
// (s_vfs_rename_mutex). So few are enough.
type moves struct {
	latest [16]dirMove
	turn   int
}

func (m *moves) add(d dirMove) {
	m.latest[m.turn] = d
	m.turn = (m.turn + 1) % len(m.latest)
}

func (m *moves) from(cookie uint32, dir notify.Object) { m.add(dirMove{cookie: cookie, from: dir}) }

func (m *moves) to(cookie uint32, dir notify.Object) {
	if d := m.find(func(d *dirMove) bool { return d.cookie == cookie && d.to.IsZero() }); d != nil {
		d.to = dir
		return
	}
	m.add(dirMove{cookie: cookie, to: dir})
}

// find returns the latest that fits, of those that have no MOVE_SELF yet.
func (m *moves) find(fits func(*dirMove) bool) *dirMove {
	for i := range m.latest {
		d := &m.latest[(m.turn+len(m.latest)-1-i)%len(m.latest)]
		if d.cookie != 0 && !d.told && fits(d) {
			return d
		}
	}
	return nil
}

// of returns the rename that has moved a directory out of, or if we have looked later than that, into parent.
func (m *moves) of(parent notify.Object) *dirMove {
	if d := m.find(func(d *dirMove) bool { return d.from == parent }); d != nil {
		return d
	}
	return m.find(func(d *dirMove) bool { return d.to == parent })
}

// moveSelf takes note of where a directory is now, and tells the coalescer which one its half, if that still
// waits for the other, is about.
func (t *watchTable) moveSelf(e *watch) (notify.Raw, bool) {
	was := e.parent
	if _, marked := t.byDir[was]; !marked {
		was = notify.Object{}
	}
	d := t.moves.of(was)
	if d == nil {
		e.parent = notify.Object{}
		return notify.Raw{}, false
	}
	d.told = true
	e.parent = d.to
	if len(t.moved) >= maxMoved {
		t.settled()
	}
	t.moved[e.dir] = struct{}{}
	return notify.Raw{Mask: notify.MoveSelf | notify.IsDir, Object: e.dir, Cookie: d.cookie}, true
}

// lineage lists those of a directory and of the directories above it that were moved of late.
func (t *watchTable) lineage(e *watch) *notify.Moved {
	if len(t.moved) == 0 {
		return nil
	}
	var first *notify.Moved
	end := &first
	for range maxDepth {
		if _, ok := t.moved[e.dir]; ok {
			*end = &notify.Moved{Dir: e.dir}
			end = &(*end).Next
		}
		up, ok := t.byDir[e.parent]
		if !ok {
			break
		}
		e = t.byWd[up]
	}
	return first
}

// settled forgets who was moved: the coalescer holds nothing back.
func (t *watchTable) settled() { clear(t.moved) }
