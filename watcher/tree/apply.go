//go:build linux

package tree

import (
	"github.com/heraldfs/heraldfs/notify"
)

// apply processes e.buf[i]: it emits what is to be told, and brings the table behind it.
func (e *engine) apply(i int) error {
	it := &e.buf[i]
	switch {
	case it.retry != nil:
		e.applyRetry(i)
		return nil
	case it.check != nil:
		e.applyCheck(i)
		return nil
	}
	if it.rules != nil {
		e.applyRules(i)
		return nil
	}
	defer e.rulesChanged(it.ev)
	if it.first != nil && it.first.swap || it.twins != nil && it.twins.looked && e.applyTwins(i) {
		return nil
	}
	if it.ev.Verify {
		defer e.queueCheck(i, it.ev)
	}
	switch it.ev.Op {
	case notify.OpRename:
		e.applyRename(i)
	case notify.OpExchange:
		e.applyExchange(&it.ev)
	case notify.OpOverflow:
		e.applyOverflow(i)
	case notify.OpMount, notify.OpUnmount:
		e.applyMount(i)
	case notify.OpDeleteSelf:
		if n := e.rootOf(it.ev.Object, it.ev.Dir); n != nil {
			e.rootGone(n, &it.ev)
		}
	default:
		e.applyPlain(i)
	}
	return nil
}

// rootOf returns the node among objs that is a watched directory.
func (e *engine) rootOf(objs ...notify.Object) *node {
	for _, obj := range objs {
		if n := e.tab.nodes[obj]; n != nil && n.root >= 0 {
			return n
		}
	}
	return nil
}

func (e *engine) rootGone(n *node, ev *notify.Event) {
	if e.gone[n.root] {
		return
	}
	e.gone[n.root] = true
	e.emit(Record{Type: TypeDelete, IsDir: true, Root: n.root, Path: ".", Pid: ev.Pid, Time: stamp(ev.Time)})
}

func (e *engine) applyPlain(i int) {
	ev := &e.buf[i].ev
	t := plainType(ev.Op)
	if t == 0 {
		return
	}
	dir, root, path := e.at(ev.Dir, ev.Name, ev.IsDir)
	if ev.IsDir && ev.Name != "." && !ev.Object.IsZero() {
		// A filesystem mark tells of a root through its parent.
		if n := e.rootOf(ev.Object); n != nil && root < 0 {
			if t == TypeDelete {
				e.rootGone(n, ev)
				return
			}
			root, path = n.root, "."
		}
	}
	if root >= 0 {
		e.record(t, ev, root, path)
	}
	if !ev.IsDir || ev.Name == "." || dir == nil {
		return
	}
	switch t {
	case TypeCreate:
		delete(e.born, ev.Object)
		e.created(i, dir, ev.Name, root >= 0)
	case TypeDelete:
		n := e.child(dir, ev.Name, ev.Object)
		if n != nil && n.root < 0 {
			e.bury(n)
			e.forget(n)
		}
	}
}

// child returns the directory name in dir. With a Marker only the name counts: a scan may have
// entered the object already at the place to which a later event will move it.
func (e *engine) child(dir *node, name string, obj notify.Object) *node {
	if n := e.tab.nodes[obj]; n != nil && (e.marker == nil || n.root >= 0) {
		return n
	}
	if dir == nil {
		return nil
	}
	return dir.kids[name]
}

// created enters a new directory.
func (e *engine) created(i int, dir *node, name string, inside bool) {
	it := &e.buf[i]
	if e.marker != nil {
		if inside && !e.tab.shallow {
			e.enterScanned(i, dir, name, it.scan)
		}
		return
	}
	obj := it.ev.Object
	n := e.tab.nodes[obj]
	if obj.IsZero() || (n == nil && !inside) {
		return
	}
	if n == nil {
		n = &node{obj: obj, root: -1}
		e.tab.nodes[obj] = n
	}
	if n.root < 0 {
		e.moveNode(n, dir, name)
	}
}

// at returns where name in dir is, or was if dir is no more: a backend may hold an
// event back for longer than that which told the end of its directory.
func (e *engine) at(dir notify.Object, name string, isDir bool) (n *node, root int, path string) {
	n = e.tab.nodes[dir]
	if n == nil {
		if p, ok := e.dead[dir]; ok && name != "." {
			return nil, p.root, join(p.path, name)
		}
	}
	root, path = e.tab.entry(n, name, isDir)
	return n, root, path
}

// maxDead bounds how many deleted directories are remembered.
const maxDead = 1024

// bury remembers where a deleted directory was.
func (e *engine) bury(n *node) {
	root, path := e.tab.locate(n)
	if e.marker == nil || root < 0 || n.obj.IsZero() {
		return
	}
	if e.dead == nil || len(e.dead) >= maxDead {
		e.dead = make(map[notify.Object]place)
	}
	e.dead[n.obj] = place{root, path}
}

// forget drops a directory that was deleted or left, and what is below it.
func (e *engine) forget(n *node) {
	delete(e.fresh, n.obj)
	delete(e.armed, n.obj)
	if e.marker == nil {
		e.tab.remove(n)
		return
	}
	e.tab.drop(n, func(n *node) {
		delete(e.unmarked, n)
		if !n.obj.IsZero() && n.root < 0 && n.files == nil {
			e.left[n.obj] = struct{}{}
		}
	})
}

// unmarkLeft takes the marks from directories that have left. It waits for the
// end of the buffer, since a scan may have found one of them at a new place.
func (e *engine) unmarkLeft() {
	for obj := range e.left {
		if e.tab.nodes[obj] == nil {
			e.marker.Unmark(obj)
		}
	}
	clear(e.left)
}

func (e *engine) applyRename(i int) {
	it := &e.buf[i]
	ev := &it.ev
	from, oldRoot, oldPath := e.at(ev.Dir, ev.Name, ev.IsDir)
	to, root, path := e.at(ev.NewDir, ev.NewName, ev.IsDir)
	e.renamed(ev, oldRoot, oldPath, root, path)
	if to == nil {
		root = outside
	}
	if !ev.IsDir {
		return
	}
	e.moves++
	n := e.child(from, ev.Name, ev.Object)
	if n != nil && n.root >= 0 {
		return // a root keeps its path
	}
	if e.marker != nil {
		switch {
		case root < 0 || e.tab.shallow:
			if n != nil {
				e.forget(n)
			}
		case n != nil && n.marked:
			e.tab.place(n, to, ev.NewName)
		default:
			if n != nil {
				e.forget(n)
			}
			e.enterScanned(i, to, ev.NewName, it.scan)
		}
		return
	}
	if n == nil {
		if root < 0 || ev.Object.IsZero() {
			return
		}
		n = &node{obj: ev.Object, root: -1}
		e.tab.nodes[ev.Object] = n
	}
	e.moveNode(n, to, ev.NewName)
	if it.scan != nil && !it.scan.vanished && root >= 0 && oldRoot < 0 {
		e.enter(n, it.scan, i, ev)
	}
}

// moveNode puts a known directory where an event says that it is now. If it was still waiting
// for a fence, it need not any more.
func (e *engine) moveNode(n, to *node, name string) {
	delete(e.fresh, n.obj)
	delete(e.armed, n.obj)
	e.tab.forgetPath(n)
	n.loose = false
	if to == nil {
		e.tab.unlink(n)
		return
	}
	e.tab.place(n, to, name)
}

// renamed emits what a rename looks like from inside the roots.
func (e *engine) renamed(ev *notify.Event, oldRoot int, oldPath string, root int, path string) {
	if oldRoot < 0 && root < 0 {
		return
	}
	r := Record{Type: TypeRename, IsDir: ev.IsDir, Cookie: ev.Cookie, Pid: ev.Pid, Time: stamp(ev.Time),
		Object: ev.Object, Verify: ev.Verify, Found: e.found}
	if root >= 0 {
		r.Root, r.Path, r.Dir = root, path, ev.NewDir
	}
	if oldRoot >= 0 {
		r.OldRoot, r.OldPath, r.OldDir = oldRoot, oldPath, ev.Dir
	}
	if root < 0 {
		r.Root = oldRoot
	}
	if oldRoot < 0 {
		r.OldRoot = root
	}
	e.emit(r)
}

func (e *engine) applyExchange(ev *notify.Event) {
	from, to := e.tab.nodes[ev.Dir], e.tab.nodes[ev.NewDir]
	oldRoot, oldPath := e.tab.entry(from, ev.Name, ev.IsDir)
	root, path := e.tab.entry(to, ev.NewName, ev.NewIsDir)
	if oldRoot >= 0 && root >= 0 {
		e.emit(Record{Type: TypeExchange, IsDir: ev.IsDir, Root: root, Path: path, OldRoot: oldRoot, OldPath: oldPath,
			Cookie: ev.Cookie, Pid: ev.Pid, Time: stamp(ev.Time), Object: ev.Object, Dir: ev.NewDir, OldDir: ev.Dir,
			Other: ev.NewObject, OtherIsDir: ev.NewIsDir, Verify: ev.Verify})
	} else {
		// Seen from inside, one object left and another one took its name.
		e.renamed(ev, oldRoot, oldPath, root, path)
		back := *ev
		back.Dir, back.NewDir, back.Object, back.IsDir = ev.NewDir, ev.Dir, ev.NewObject, ev.NewIsDir
		e.renamed(&back, root, path, oldRoot, oldPath)
	}
	e.moves++
	a, b := e.child(from, ev.Name, ev.Object), e.child(to, ev.NewName, ev.NewObject)
	if a != nil {
		e.tab.unlink(a)
	}
	if b != nil {
		e.tab.unlink(b)
	}
	e.exchangeSide(a, to, ev.NewName, root, ev.IsDir)
	e.exchangeSide(b, from, ev.Name, oldRoot, b != nil)
}

func (e *engine) exchangeSide(n, to *node, name string, root int, isDir bool) {
	switch {
	case n != nil && n.root >= 0:
	case e.marker == nil:
		if n != nil {
			e.moveNode(n, to, name)
		}
	case root < 0:
		if n != nil {
			e.forget(n)
		}
	case n != nil:
		e.tab.place(n, to, name)
	case isDir && !e.tab.shallow:
		n = &node{root: -1}
		e.tab.place(n, to, name)
		e.unmarked[n] = struct{}{}
	}
}

// applyMount: what a mount point shows has changed altogether.
func (e *engine) applyMount(i int) {
	it := &e.buf[i]
	dir := e.tab.nodes[it.ev.Dir]
	root, path := e.tab.entry(dir, it.ev.Name, true)
	if root < 0 {
		return
	}
	if e.marker != nil && !e.tab.shallow {
		if n := dir.kids[it.ev.Name]; n != nil {
			e.forget(n)
		}
		if it.scan != nil && !it.scan.vanished {
			n := &node{root: -1}
			e.tab.place(n, dir, it.ev.Name)
			e.enter(n, it.scan, i, nil)
		}
	}
	e.emit(Record{Type: TypeRescan, IsDir: true, Root: root, Path: path, Time: stamp(it.ev.Time)})
}
