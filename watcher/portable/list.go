package portable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sort"
	"time"

	"github.com/heraldfs/heraldfs/internal/ignore"
)

// list watches the directory n and then enters what is in it, with what is below, calling each for every
// entry that the table did not have.
func (e *engine) list(n *node, each func(*node)) {
	entries, ok := e.open(n)
	if !ok {
		return
	}
	for _, d := range entries {
		k, fresh := e.meet(n, d)
		if k == nil {
			continue
		}
		if fresh {
			each(k)
		}
		if fresh && k.state.dir && !e.shallow {
			e.list(k, each)
		}
	}
}

// open watches the directory n and lists it. It is false if that was not possible, and said why.
func (e *engine) open(n *node) ([]fs.DirEntry, bool) {
	path := n.path()
	if e.failed != nil {
		return nil, false
	}
	if err := e.watch.Add(path); err != nil {
		e.refused(path, err)
		return nil, false
	}
	if s := look(path); !s.id.is(n.state.id) {
		// Another one has the path by now, and must not be watched as this one.
		_ = e.watch.Remove(path)
		e.inTrouble(path)
		return nil, false
	}
	e.rules(n)
	entries, err := os.ReadDir(path)
	if err != nil {
		e.refused(path, err)
	}
	return entries, true
}

// inTrouble has a directory that could not be watched looked at again, and all watches with it.
func (e *engine) inTrouble(path string) {
	e.doubt(path)
	e.trouble = e.fenceMade + 1
}

// audit compares the watches that there are with those that there should be, and makes up the difference. It is needed
// after directories were renamed faster than their watches could follow.
func (e *engine) audit(now time.Time) {
	extra := make(map[string]bool)
	for _, path := range e.watch.WatchList() {
		extra[path] = true
	}
	delete(extra, e.fenceDir)
	var missing []*node
	want := func(n *node) {
		path := n.path()
		if !extra[path] {
			missing = append(missing, n)
		}
		delete(extra, path)
	}
	for _, t := range e.tops {
		if t.gone {
			continue
		}
		want(t.node)
		t.node.below(func(n *node) {
			if n.state.dir && !e.shallow {
				want(n)
			}
		})
	}
	for path := range extra {
		_ = e.watch.Remove(path)
	}
	if len(missing) > 0 {
		e.compare(missing, true, now)
	}
}

// refused says why a directory cannot be watched, and ends everything if it would be wrong to go on.
func (e *engine) refused(path string, err error) {
	switch {
	case errors.Is(err, fs.ErrNotExist), isNotDir(err):
		e.inTrouble(path)
	case errors.Is(err, fs.ErrPermission):
		e.log.Warn("cannot watch directory", "path", path, "error", err)
	default:
		e.failed = fmt.Errorf("watch %s: %w%s", path, err, limitAdvice(err))
	}
}

// meet enters what a listing of n has found. It returns nil if nothing is to be known of it.
func (e *engine) meet(n *node, d fs.DirEntry) (k *node, fresh bool) {
	if n.leftOut(d.Name(), d.IsDir()) || n.join(d.Name()) == e.fenceDir {
		return nil, false
	}
	fi, err := d.Info()
	if err != nil {
		return nil, false // gone again
	}
	s := stateOf(n.join(d.Name()), fi)
	if !s.exists {
		return nil, false
	}
	if k := n.kids[d.Name()]; k != nil && (k.state.id.is(s.id) || !k.state.exists) {
		if !k.state.exists {
			k.state = s // it was gone when its notification came
		}
		return k, false
	}
	k = &node{state: s}
	k.put(n, d.Name())
	e.isAhead(k)
	return k, true
}

// rules reads what is left out in the directory n.
func (e *engine) rules(n *node) {
	base := n.above()
	n.scope = base
	if e.noFiles || n.top != nil && n.top.index < 0 {
		return
	}
	path := n.join(ignore.FileName)
	if fi, err := os.Lstat(path); err != nil || !fi.Mode().IsRegular() {
		return // a symlink may lead anywhere, and a FIFO would have us wait
	}
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	rules, err := ignore.Read(f)
	if err != nil {
		e.log.Warn("cannot read patterns", "path", f.Name(), "err", err)
		return
	}
	n.scope = base.In(n.rel(), rules)
}

// above is the scope of the directory n without the patterns in it.
func (n *node) above() *ignore.Scope {
	if n.top != nil {
		return n.top.scope
	}
	return n.parent.scope
}

// rel is the path of a directory below its root, "" for the root.
func (n *node) rel() string {
	if _, path := n.place(); path != "." {
		return path
	}
	return ""
}

func ruled(name string) bool { return name == ignore.FileName }

// ruledAt is called when name in dir has come or gone.
func (e *engine) ruledAt(dir *node, name string, at time.Time) {
	if ruled(name) {
		e.rulesChanged(dir, at)
	}
}

// rulesChanged reads the patterns of dir again, and makes the table follow: what is left out now is
// forgotten, what is not any more is watched. Nobody is told of the entries, only to look for himself.
func (e *engine) rulesChanged(dir *node, at time.Time) {
	if e.noFiles || dir == nil || dir.top != nil && dir.top.index < 0 {
		return
	}
	e.rules(dir)
	e.refilter(dir)
	if root, path := dir.place(); root >= 0 {
		e.emit(Event{Kind: Rescan, IsDir: true, Root: root, Path: path, Time: at})
	}
}

func (e *engine) refilter(dir *node) {
	entries, ok := e.open(dir) // which reads what is left out in it
	for _, name := range dir.names() {
		if k := dir.kids[name]; dir.leftOut(name, k.state.dir) {
			e.drop(k)
		}
	}
	if !ok {
		return
	}
	for _, d := range entries {
		if k, fresh := e.meet(dir, d); k == nil || !k.state.dir || e.shallow {
			continue
		} else if fresh {
			e.list(k, func(*node) {})
		} else {
			e.refilter(k)
		}
	}
}

// overflow makes up for lost notifications.
func (e *engine) overflow(at time.Time) {
	e.roots(Overflow, at)
	// Whatever was queued before is contained in what is found now.
	e.passed(e.fenceMade)
	e.last = hint{}
	var dirs []*node
	for _, t := range e.tops {
		if !t.gone {
			dirs = append(dirs, t.node)
		}
	}
	e.compare(dirs, false, at)
	e.fenceWants = true
	e.roots(Rescan, at)
}

func (e *engine) roots(kind Kind, at time.Time) {
	for _, t := range e.tops {
		if t.gone {
			continue
		}
		if t.index >= 0 {
			e.emit(Event{Kind: kind, IsDir: true, Root: t.index, Path: ".", Time: at})
			continue
		}
		for _, name := range sortedFiles(t.files) {
			e.emit(Event{Kind: kind, Root: t.files[name], Path: ".", Time: at})
		}
	}
}

func sortedFiles(m map[string]int) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
