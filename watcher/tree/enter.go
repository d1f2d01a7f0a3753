//go:build linux

package tree

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// errOther says that a path leads to another directory than the one that is meant.
var errOther = errors.New("another directory is there")

// needsScan reports whether it waits for a scan: a directory has come of which the
// events alone do not tell the contents.
func (e *engine) needsScan(it *item) bool {
	ev := &it.ev
	if it.check != nil {
		return true
	}
	if it.rules != nil {
		return e.marker != nil && !e.tab.shallow
	}
	if it.twins != nil {
		root, _ := e.tab.entry(e.tab.nodes[ev.NewDir], ev.NewName, ev.IsDir)
		old, _ := e.tab.entry(e.tab.nodes[ev.Dir], ev.Name, ev.IsDir)
		if root >= 0 && old >= 0 {
			return true
		}
	}
	if e.tab.shallow {
		return e.marker != nil && ev.Op == notify.OpOverflow && it.retry == nil
	}
	if e.marker == nil {
		if ev.Op != notify.OpRename || !ev.IsDir || ev.Object.IsZero() || e.rootOf(ev.Object) != nil {
			return false
		}
		root, _ := e.tab.entry(e.tab.nodes[ev.NewDir], ev.NewName, true)
		old, _ := e.tab.entry(e.tab.nodes[ev.Dir], ev.Name, true)
		return root >= 0 && old < 0
	}
	if it.retry != nil || ev.Op == notify.OpOverflow {
		return true
	}
	dir, name := target(ev)
	n := e.tab.nodes[dir]
	if root, _ := e.tab.entry(n, name, ev.IsDir); root < 0 || !ev.IsDir {
		return false
	}
	switch ev.Op {
	case notify.OpCreate, notify.OpMount, notify.OpUnmount:
	case notify.OpRename:
		moved := e.child(e.tab.nodes[ev.Dir], ev.Name, ev.Object)
		if moved != nil && (moved.marked || moved.root >= 0) {
			return false
		}
	default:
		return false
	}
	if sub := e.nested[entryKey{dir, name}]; sub != nil && !it.due {
		delete(e.nested, entryKey{dir, name})
		it.scan, it.due, it.passed = sub, true, true
	}
	return true
}

// target is the entry that ev made.
func target(ev *notify.Event) (notify.Object, string) {
	if ev.Op == notify.OpRename {
		return ev.NewDir, ev.NewName
	}
	return ev.Dir, ev.Name
}

// scanAhead scans for e.buf[i], and for what follows as long as the paths in the
// table are sure to be those on the disk.
func (e *engine) scanAhead(i int) error {
	for j := i; j < len(e.buf); j++ {
		it := &e.buf[j]
		moved := it.retry == nil && it.check == nil && it.rules == nil && it.ev.IsDir && (it.ev.Op == notify.OpRename || it.ev.Op == notify.OpExchange)
		if j > i && (moved || it.ev.Op == notify.OpOverflow) && e.marker != nil {
			return nil
		}
		if it.due || !e.needsScan(it) {
			continue
		}
		if err := e.scan(it); err != nil {
			return err
		}
		it.due = true
	}
	return nil
}

func (e *engine) scan(it *item) error {
	if it.check != nil {
		e.look(it.check)
		return nil
	}
	if it.rules != nil {
		return e.scanRules(it)
	}
	if it.twins != nil {
		e.lookAtTwins(it)
		return nil
	}
	if it.retry == nil && it.ev.Op == notify.OpOverflow {
		return e.scanRoots(it)
	}
	fd, path, err := e.openItem(it)
	if err != nil {
		if !gone(err) && !errors.Is(err, errOther) {
			e.scanner.deny(path, err)
		}
		it.scan = &scan{vanished: true}
		if e.marker == nil {
			// Events tell what was in it.
			it.scan = &scan{obj: it.ev.Object}
		}
		return nil
	}
	it.scan, err = e.scanner.run(context.Background(), fd, path, e.scopeAbove(it))
	return err
}

func (e *engine) openItem(it *item) (fd int, path string, err error) {
	var parent *node
	var name string
	if it.retry != nil {
		parent, name = it.retry.parent, it.retry.name
	} else {
		var dir notify.Object
		dir, name = target(&it.ev)
		parent = e.tab.nodes[dir]
	}
	root, path := e.tab.entry(parent, name, true)
	if root < 0 {
		return -1, path, errGone
	}
	if e.marker == nil {
		fd, err = e.host.openObject(it.ev.Object)
		return fd, path, err
	}
	if fd, err = e.host.openPath(root, path); err != nil {
		return -1, path, err
	}
	// The path is that of this point of the stream; another directory may have it by now.
	if it.ev.Op != notify.OpMount && it.ev.Op != notify.OpUnmount && !isIn(fd, parent.obj) {
		unix.Close(fd)
		return -1, path, errOther
	}
	return fd, path, nil
}

func isIn(fd int, parent notify.Object) bool {
	up, err := unix.Openat(fd, "..", openFlags, 0)
	if err != nil {
		return false
	}
	defer unix.Close(up)
	obj, _, err := sys.ObjectOf(up)
	return err == nil && obj == parent
}

// enterScanned puts the directory that the event e.buf[i] is about at (dir, name).
func (e *engine) enterScanned(i int, dir *node, name string, sc *scan) {
	ev := &e.buf[i].ev
	n := dir.kids[name]
	if n != nil {
		e.forget(n)
	}
	n = &node{root: -1}
	e.tab.place(n, dir, name)
	if sc == nil || sc.vanished || !e.same(i, dir.obj, name, ev.Object, sc) {
		e.unmarked[n] = struct{}{}
		return
	}
	if other := e.tab.nodes[sc.obj]; other != nil && ev.Object == sc.obj && other.root < 0 {
		e.tab.bind(other, notify.Object{})
	}
	e.enter(n, sc, i, ev)
}

// same reports whether what was found by path is what the event is about, and
// not a successor of the same name.
func (e *engine) same(i int, dir notify.Object, name string, obj notify.Object, sc *scan) bool {
	if !obj.IsZero() {
		return obj == sc.obj
	}
	return !e.entries().appears(dir, name, i)
}

func (e *engine) applyRetry(i int) {
	it := &e.buf[i]
	n := it.retry
	if _, ok := e.unmarked[n]; !ok || it.scan == nil || n.parent == nil {
		return
	}
	if it.scan.vanished {
		if n.untold {
			e.forget(n)
		}
		return
	}
	if e.entries().appears(n.parent.obj, n.name, i) {
		return
	}
	ev := notify.Event{Time: time.Now()}
	if n.untold {
		n.untold = false
		e.tellCreated(n.parent, n.name, true, &ev)
	}
	e.enter(n, it.scan, i, &ev)
}

// enter gives n what a scan found at position i of the stream. An entry whose creation
// no later event tells was there before, and is told now, if ev is not nil.
func (e *engine) enter(n *node, sc *scan, i int, ev *notify.Event) {
	if other := e.tab.nodes[sc.obj]; other != nil && other != n {
		if e.marker != nil && e.tab.inside(other) && (other.root >= 0 || !e.leaves(other, i)) {
			// Visible a second time, through a bind mount: the first path stays.
			e.tab.remove(n)
			delete(e.unmarked, n)
			return
		}
		// It has come from there already, and a later event will tell that it left.
		e.tab.bind(other, notify.Object{})
	}
	e.tab.bind(n, sc.obj)
	e.ruled(n, sc)
	n.marked = true
	delete(e.unmarked, n)
	later := e.entries().byDir[sc.obj]
	listed := make(map[string]struct{}, len(sc.entries))
	for _, se := range sc.entries {
		listed[se.name] = struct{}{}
		c, changed := firstAfter(later[se.name], i)
		if changed && se.sub != nil && e.marker != nil && e.entries().appears(sc.obj, se.name, i) {
			// What was listed is what a later event is about.
			e.nested[entryKey{sc.obj, se.name}] = se.sub
			se.sub = nil
		}
		switch {
		case changed && c.appears:
		case changed && !c.obj.IsZero() && (se.sub == nil || se.sub.obj != c.obj):
			e.enterChild(n, se.name, c.isDir, sc.lost[c.obj], i, ev)
		default:
			e.enterChild(n, se.name, se.isDir, se.sub, i, ev)
		}
	}
	for _, name := range sortedNames(later) {
		if _, ok := listed[name]; ok {
			continue
		}
		if c, ok := firstAfter(later[name], i); ok && !c.appears {
			e.enterChild(n, name, c.isDir, sc.lost[c.obj], i, ev)
		}
	}
}

// leaves reports whether a later event takes n away from where it is.
func (e *engine) leaves(n *node, i int) bool {
	for ; n != nil && n.parent != nil; n = n.parent {
		if c, ok := firstAfter(e.entries().byDir[n.parent.obj][n.name], i); ok && !c.appears {
			return true
		}
	}
	return false
}

// enterChild tells an entry that was there at position i, and enters it if it is a directory.
func (e *engine) enterChild(n *node, name string, isDir bool, sub *scan, i int, ev *notify.Event) {
	e.tellCreated(n, name, isDir, ev)
	if !isDir || (sub == nil && e.marker == nil) {
		return
	}
	if root, _ := e.tab.entry(n, name, true); root < 0 && e.marker != nil {
		return // left out
	}
	child := &node{root: -1}
	e.tab.place(child, n, name)
	if sub != nil {
		e.enter(child, sub, i, ev)
	} else {
		e.unmarked[child] = struct{}{}
	}
}

// complete scans those directories that were in the scanned ones at the time of e.buf[i],
// but have left since. If it finds any, a new fence is due.
func (e *engine) complete(i int) error {
	it := &e.buf[i]
	if it.twins != nil {
		e.completeTwins(i)
		return nil
	}
	if e.marker != nil || it.scan == nil {
		return nil
	}
	todo := []*scan{it.scan}
	for len(todo) > 0 {
		sc := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		have := make(map[string]notify.Object)
		for _, se := range sc.entries {
			if se.sub != nil {
				todo = append(todo, se.sub)
				have[se.name] = se.sub.obj
			}
		}
		for name, changes := range e.entries().byDir[sc.obj] {
			c, ok := firstAfter(changes, i)
			if !ok || c.appears || !c.isDir || c.obj.IsZero() || have[name] == c.obj {
				continue
			}
			sub := sc.lost[c.obj]
			if sub == nil {
				var err error
				if sub, err = e.scanLost(c.obj); err != nil {
					return err
				}
				if sc.lost == nil {
					sc.lost = make(map[notify.Object]*scan)
				}
				sc.lost[c.obj] = sub
				it.armed, it.passed = false, false
			}
			todo = append(todo, sub)
		}
	}
	return nil
}

func (e *engine) scanLost(obj notify.Object) (*scan, error) {
	fd, err := e.host.openObject(obj)
	if err != nil {
		return &scan{obj: obj}, nil // events tell what was in it
	}
	return e.scanner.run(context.Background(), fd, "", scanScope{})
}

func (e *engine) tellCreated(n *node, name string, isDir bool, ev *notify.Event) {
	if ev == nil {
		return
	}
	if root, path := e.tab.entry(n, name, isDir); root >= 0 {
		e.emit(Record{Type: TypeCreate, IsDir: isDir, Root: root, Path: path, Pid: ev.Pid, Time: stamp(ev.Time), Dir: n.obj, Found: true})
	}
}

// retryUnmarked queues a new try for the directories that were not found where the
// events had them, if something has moved since the last one.
func (e *engine) retryUnmarked() {
	for n := range e.unmarked {
		if n.parent == nil || !e.tab.inside(n) {
			delete(e.unmarked, n)
			continue
		}
		if n.triedAt != e.moves+1 {
			n.triedAt = e.moves + 1
			e.buf = append(e.buf, item{retry: n})
		}
	}
}
