//go:build linux

package tree

import (
	"context"
	"fmt"
	"sort"
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

// place of a directory below a root.
type place struct {
	root int
	path string
}

// scanRoots walks all roots again. With a Marker the directories are the snapshot that there is.
func (e *engine) scanRoots(it *item) error {
	it.roots = make([]*scan, len(e.tab.roots))
	for i, n := range e.tab.roots {
		if n.root < 0 || e.gone[n.root] || e.tab.shallow {
			continue
		}
		fd, err := e.host.openPath(n.root, "")
		if err != nil {
			return fmt.Errorf("open root again: %w", err)
		}
		if it.roots[i], err = e.scanner.run(context.Background(), fd, ".", scanScope{scope: e.tab.scope, files: e.tab.load != nil}); err != nil {
			return err
		}
	}
	return nil
}

// applyOverflow tells the loss and its scope, and makes the table right again.
func (e *engine) applyOverflow(i int) {
	it := &e.buf[i]
	now := stamp(it.ev.Time)
	e.forEachRoot(func(root int) { e.emit(Record{Type: TypeOverflow, IsDir: true, Root: root, Path: ".", Time: now}) })
	if e.marker == nil {
		e.tab.reset()
		e.fresh, e.armed, e.born = nil, nil, nil
		for j := i + 1; j < len(e.buf); j++ {
			e.prescan([]notify.Event{e.buf[j].ev})
		}
	} else {
		e.rebuild(it.roots, now)
	}
	e.forEachRoot(func(root int) { e.emit(Record{Type: TypeRescan, IsDir: true, Root: root, Path: ".", Time: now}) })
}

func (e *engine) forEachRoot(f func(root int)) {
	for _, n := range e.tab.roots {
		if n.root >= 0 && !e.gone[n.root] {
			f(n.root)
		}
		files := make([]int, 0, len(n.files))
		for _, index := range n.files {
			files = append(files, index)
		}
		sort.Ints(files)
		for _, index := range files {
			f(index)
		}
	}
}

// rebuild replaces the table by what the scans found, and emits how the directories differ.
func (e *engine) rebuild(roots []*scan, now time.Time) {
	before := e.places()
	e.tab.reset()
	clear(e.unmarked)
	clear(e.nested)
	e.dead = nil
	for i, sc := range roots {
		if sc != nil {
			e.plant(e.tab.roots[i], sc)
		}
	}
	after := e.places()
	var records []Record
	for obj, p := range after {
		switch was, ok := before[obj]; {
		case !ok:
			records = append(records, Record{Type: TypeCreate, IsDir: true, Root: p.root, Path: p.path, Time: now, Object: obj})
		case was != p && !e.followsParent(obj, was, p, before):
			records = append(records, Record{Type: TypeRename, IsDir: true, Root: p.root, Path: p.path,
				OldRoot: was.root, OldPath: was.path, Time: now, Object: obj})
		}
	}
	for obj, was := range before {
		if _, ok := after[obj]; !ok {
			records = append(records, Record{Type: TypeDelete, IsDir: true, Root: was.root, Path: was.path, Time: now, Object: obj})
			e.marker.Unmark(obj)
		}
	}
	// Renames first, then creates from the top, then deletes from the bottom.
	rank := func(t Type) int {
		switch t {
		case TypeRename:
			return 0
		case TypeCreate:
			return 1
		}
		return 2
	}
	sort.Slice(records, func(i, j int) bool {
		a, b := &records[i], &records[j]
		if rank(a.Type) != rank(b.Type) {
			return rank(a.Type) < rank(b.Type)
		}
		if a.Type == TypeDelete {
			a, b = b, a
		}
		if a.Root != b.Root {
			return a.Root < b.Root
		}
		return a.Path < b.Path
	})
	for _, r := range records {
		r.Found = true
		e.emit(r)
	}
}

// followsParent reports whether a directory has another path only because one above
// it has.
func (e *engine) followsParent(obj notify.Object, was, is place, before map[notify.Object]place) bool {
	n := e.tab.nodes[obj]
	if n == nil || n.parent == nil {
		return false
	}
	parentWas, ok := before[n.parent.obj]
	return ok && was.root == parentWas.root && was.path == join(parentWas.path, n.name)
}

// places returns where each directory below a root is.
func (e *engine) places() map[notify.Object]place {
	m := make(map[notify.Object]place, len(e.tab.nodes))
	for obj, n := range e.tab.nodes {
		if root, path := e.tab.locate(n); root >= 0 && n.root < 0 {
			m[obj] = place{root, path}
		}
	}
	return m
}

// plant enters a scan and tells nothing.
func (e *engine) plant(n *node, sc *scan) {
	e.tab.bind(n, sc.obj)
	e.ruled(n, sc)
	n.marked = true
	for _, se := range sc.entries {
		if !se.isDir {
			continue
		}
		if se.sub != nil && e.tab.nodes[se.sub.obj] != nil {
			continue // visible a second time, or a root of its own
		}
		child := &node{root: -1}
		e.tab.place(child, n, se.name)
		if se.sub != nil {
			e.plant(child, se.sub)
		} else {
			e.unmarked[child] = struct{}{}
		}
	}
}
