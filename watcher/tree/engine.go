//go:build linux

package tree

import (
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

const (
	// maxHeld bounds the events that wait for a fence. Beyond it they are
	// processed with what is known.
	maxHeld = 1 << 18
	// defaultMaxDirs bounds the table with a file system mark.
	defaultMaxDirs = 1 << 17
)

// engine turns the events of one watcher into records. It is used by one
// goroutine at a time.
type engine struct {
	tab     *table
	host    host
	marker  notify.Marker // nil: file system mark
	scanner *scanner
	maxDirs int

	buf []item
	// fresh are directories that were looked up, and are loose in the table until a fence has
	// passed. armed are those for which the fence has been asked for. born are
	// directories that buf itself creates.
	fresh, armed map[notify.Object]snap
	born         map[notify.Object]struct{}
	// nested are scans of directories whose create event is still to come.
	nested   map[entryKey]*scan
	unmarked map[*node]struct{}
	left     map[notify.Object]struct{} // marked, and not in the table any more
	dead     map[notify.Object]place    // deleted a short while ago
	moves    uint64                     // directory renames so far
	index    *entryIndex
	found    bool // what is emitted was found by comparing

	gone map[int]bool // roots that were deleted
	emit func(Record)
}

// item is an event that waits, or a directory that has to be tried again.
type item struct {
	ev     notify.Event
	retry  *node
	check  *check
	rules  *node  // its patterns have changed
	twins  *twins // of the first of two renames that may be an exchange
	first  *twins // of the second
	scan   *scan
	roots  []*scan // of an overflow
	due    bool    // the scan was made, and a fence must pass
	armed  bool    // it was asked for
	passed bool    // it has passed
}

// snap is where a directory was when it was looked up.
type snap struct {
	parent notify.Object
	name   string
	known  bool
}

type entryKey struct {
	dir  notify.Object
	name string
}

// feed takes what the watcher emitted.
func (e *engine) feed(batch []notify.Event) error {
	held := len(e.buf)
	for i := range batch {
		e.buf = append(e.buf, item{ev: batch[i]})
	}
	if e.marker != nil {
		e.pair(held)
	}
	if e.marker == nil {
		e.prescan(batch)
	}
	for len(e.buf) > maxHeld && e.waiting() {
		// The queue is filled faster than it is read to its end. What is known has to do.
		e.arm()
		held = len(e.buf)
		if err := e.passed(); err != nil || len(e.buf) == held {
			return err
		}
	}
	return e.run()
}

// waiting reports whether a fence is needed.
func (e *engine) waiting() bool { return len(e.buf) > 0 }

// arm is called before a fence is asked for: the fence is for what was looked at until now.
func (e *engine) arm() {
	if e.armed == nil {
		e.armed, e.fresh = e.fresh, nil
	} else {
		for obj, s := range e.fresh {
			e.armed[obj] = s
		}
		e.fresh = nil
	}
	for i := range e.buf {
		e.buf[i].armed = e.buf[i].due
	}
}

// passed says that everything that was queued when arm was called last has been fed.
func (e *engine) passed() error {
	armed := e.armed
	e.armed = nil
	for i := range e.buf {
		e.buf[i].passed = e.buf[i].passed || e.buf[i].armed
	}
	e.settle(armed)
	return e.run()
}

// run processes buf as far as it can.
func (e *engine) run() error {
	e.index = nil
	for i := 0; i < len(e.buf); i++ {
		it := &e.buf[i]
		if e.blocked(it) {
			e.shift(i)
			return nil
		}
		if e.needsScan(it) {
			var err error
			if !it.due {
				err = e.scanAhead(i)
			} else if it.passed {
				err = e.complete(i)
			}
			if err != nil || !it.passed {
				e.shift(i)
				return err
			}
		}
		if err := e.apply(i); err != nil {
			return err
		}
		if i == len(e.buf)-1 {
			e.retryUnmarked()
		}
	}
	e.shift(len(e.buf))
	clear(e.nested)
	clear(e.born)
	e.unmarkLeft()
	if e.marker == nil && len(e.tab.nodes) > e.maxDirs {
		// Nothing is held, so whatever comes next is looked up anew.
		e.tab.reset()
	}
	return nil
}

// allGone reports whether every root was a directory that is deleted now.
func (e *engine) allGone() bool {
	if len(e.gone) == 0 {
		return false
	}
	for _, n := range e.tab.roots {
		if n.files != nil || !e.gone[n.root] {
			return false
		}
	}
	return true
}

// shift drops the first n items.
func (e *engine) shift(n int) {
	rest := copy(e.buf, e.buf[n:])
	clear(e.buf[rest:])
	e.buf = e.buf[:rest]
	e.index = nil
	if rest == 0 && cap(e.buf) > 1<<14 {
		e.buf = nil
	}
}

// blocked reports whether the place of a directory of it is not sure yet.
func (e *engine) blocked(it *item) bool {
	if len(e.fresh) == 0 && len(e.armed) == 0 {
		return false
	}
	dirs := [2]notify.Object{it.ev.Dir, it.ev.NewDir}
	if it.check != nil {
		dirs[0] = it.check.found.parent
	}
	for _, dir := range dirs {
		if n := e.tab.nodes[dir]; n != nil {
			if root, _ := e.tab.locate(n); root == unsure {
				return true
			}
		}
	}
	return false
}

// prescan looks up the directories of new events that are not known.
func (e *engine) prescan(batch []notify.Event) {
	for i := range batch {
		ev := &batch[i]
		e.lookup(ev.Dir)
		e.lookup(ev.NewDir)
		if ev.IsDir && ev.Op == notify.OpCreate && !ev.Object.IsZero() {
			if e.born == nil {
				e.born = make(map[notify.Object]struct{})
			}
			e.born[ev.Object] = struct{}{}
		}
		if ev.Op == notify.OpMount || ev.Op == notify.OpUnmount {
			e.host.mountsChanged()
		}
	}
}

// lookup climbs from dir to the first directory that is known, or about to be.
func (e *engine) lookup(dir notify.Object) {
	for depth := 0; !dir.IsZero() && depth < maxDepth; depth++ {
		if e.tab.nodes[dir] != nil {
			return
		}
		if _, ok := e.born[dir]; ok {
			return
		}
		if e.fresh == nil {
			e.fresh = make(map[notify.Object]snap)
		}
		e.tab.nodes[dir] = &node{obj: dir, root: -1, loose: true}
		parent, name, err := e.host.where(dir)
		if err != nil {
			// Gone, or the top: if it matters, a queued event names it.
			e.fresh[dir] = snap{}
			return
		}
		e.fresh[dir] = snap{parent: parent, name: name, known: true}
		dir = parent
	}
}

// settle enters looked-up directories where they were when the events in buf begin:
// at the place that the first queued event about them tells, or else, since then they have
// not moved, where they were found.
func (e *engine) settle(fresh map[notify.Object]snap) {
	if len(fresh) == 0 {
		return
	}
	told := make(map[notify.Object]struct{})
	for i := range e.buf {
		ev := &e.buf[i].ev
		if ev.IsDir && !ev.Object.IsZero() && ev.Name != "." && !ev.Dir.IsZero() {
			_, ok := fresh[ev.Object]
			if _, done := told[ev.Object]; ok && !done {
				told[ev.Object] = struct{}{}
				// One that is created only later is nowhere yet: another may still have its place.
				fresh[ev.Object] = snap{parent: ev.Dir, name: ev.Name, known: ev.Op != notify.OpCreate}
			}
		}
		if _, ok := fresh[ev.NewObject]; ok && ev.NewIsDir && !ev.NewDir.IsZero() {
			if _, done := told[ev.NewObject]; !done {
				told[ev.NewObject] = struct{}{}
				fresh[ev.NewObject] = snap{parent: ev.NewDir, name: ev.NewName, known: true}
			}
		}
	}
	for obj, s := range fresh {
		n := e.tab.nodes[obj]
		if n == nil || !n.loose {
			continue
		}
		e.tab.forgetPath(n)
		n.loose = false
		if !s.known {
			continue
		}
		p := e.tab.nodes[s.parent]
		if p == nil {
			if _, ok := e.born[s.parent]; ok {
				// Its create event, still to be processed, says where it is.
				e.tab.nodes[s.parent] = &node{obj: s.parent, root: -1}
			} else {
				e.lookup(s.parent)
			}
			p = e.tab.nodes[s.parent]
		}
		e.tab.place(n, p, s.name)
	}
}

func (e *engine) record(t Type, ev *notify.Event, root int, path string) {
	r := Record{Type: t, IsDir: ev.IsDir, Root: root, Path: path, Cookie: ev.Cookie, Pid: ev.Pid, Time: stamp(ev.Time),
		Object: ev.Object, Dir: ev.Dir, Verify: ev.Verify, Found: e.found}
	if ev.Name == "." {
		r.Object, r.Dir = ev.Dir, notify.Object{}
		if n := e.tab.nodes[ev.Dir]; n != nil && n.root < 0 && n.parent != nil {
			r.Dir = n.parent.obj
		}
	}
	if path == "." {
		r.Dir = notify.Object{}
	}
	e.emit(r)
}

func stamp(t time.Time) time.Time {
	if t.IsZero() {
		return time.Now()
	}
	return t
}
