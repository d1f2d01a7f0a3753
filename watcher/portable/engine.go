package portable

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/fsnotify/fsnotify"
)

// lookAhead bounds how many notifications are searched for the other half of a rename.
const lookAhead = 256

// watches is what the engine needs of fsnotify.Watcher.
type watches interface {
	Add(path string) error
	Remove(path string) error
	WatchList() []string
}

// engine turns hints into Events. It is used by one goroutine.
type engine struct {
	tops    []*top
	shallow bool
	watch   watches
	log     *slog.Logger
	noFiles bool // ignore.FileName is a name like any other
	wait    time.Duration
	sys     system

	fenceDir   string
	fenceMade  uint64
	fenceSeen  uint64
	fenceWants bool // something is ahead of the fences so far

	buf     []hint
	doubts  map[string]uint64 // absolute paths, with the fence after which they are looked at
	trouble uint64            // the fence after which an audit is due, or 0
	aliases []alias
	selves  map[string]uint64 // old paths of directories, which may tell of their own renames until the fence
	last    hint
	out     []Event
	failed  error
}

// system says how the operating system's notifications are to be understood.
type system struct {
	// olds: fsnotify knows the old name of each rename inside the tree, so an identity proves nothing.
	olds bool
	// moves: a file that goes to another directory is told as removed.
	moves bool
	// twice: a change of the attributes of a watched directory is told by its parent and by itself.
	twice bool
	// follows: fsnotify gives watches below a renamed directory their new paths itself.
	follows bool
	// files: files have watches of their own, which keep their paths when a directory above is renamed.
	files bool
}

func systemOf(goos string) system {
	switch goos {
	case "linux":
		return system{olds: true, twice: true}
	case "windows":
		return system{moves: true, follows: true}
	}
	return system{files: true}
}

func (e *engine) emit(ev Event) { e.out = append(e.out, ev) }

func (e *engine) tell(kind Kind, n *node, at time.Time) {
	if root, path := n.place(); root >= 0 {
		e.emit(Event{Kind: kind, IsDir: n.state.dir, Root: root, Path: path, Time: at})
	}
}

// run processes what is queued. It returns how long to wait for the other half of a rename, 0 if there
// is nothing to wait for.
func (e *engine) run(now time.Time) time.Duration {
	for i := 0; i < len(e.buf) && e.failed == nil; i++ {
		h := &e.buf[i]
		if h.done {
			continue
		}
		if wait := e.one(h, i, now); wait > 0 {
			e.buf = append(e.buf[:0], e.buf[i:]...)
			return wait
		}
	}
	clear(e.buf)
	e.buf = e.buf[:0]
	e.settle(now)
	return 0
}

// one processes the hint at position i, or says how long it has to wait.
func (e *engine) one(h *hint, i int, now time.Time) time.Duration {
	if h.lost {
		e.overflow(h.at)
		return 0
	}
	if filepath.Dir(h.raw) == e.fenceDir {
		e.fence(h)
		return 0
	}
	if h.raw == "" || h.raw == e.fenceDir {
		return 0
	}
	h.name = e.resolve(h.raw)
	again := e.sys.twice && h.op == fsnotify.Chmod && e.last.op == h.op && e.last.raw == h.raw
	e.last = *h
	if again {
		e.last = hint{}
		if n := e.known(h.name); n != nil && n.state.dir && n.top == nil {
			return 0
		}
	}
	if h.op.Has(fsnotify.Create) {
		e.created(h)
	}
	if h.op.Has(fsnotify.Write) {
		e.modified(h)
	}
	if h.op.Has(fsnotify.Chmod) {
		e.changed(h)
	}
	switch {
	case h.op.Has(fsnotify.Rename), h.op.Has(fsnotify.Remove) && e.sys.moves:
		return e.left(h, i, now)
	case h.op.Has(fsnotify.Remove):
		e.removed(h)
	}
	return 0
}

// created handles a name that has come.
func (e *engine) created(h *hint) {
	dir, name := e.find(h.name)
	if dir == nil || name == "" || !dir.state.dir {
		return
	}
	s := look(h.name)
	if dir.leftOut(name, s.dir) {
		return
	}
	if k := dir.kids[name]; k != nil {
		switch {
		case k.state.id.is(s.id):
			k.ahead = 0 // its own notification has come
		case s.exists || (e.sys.olds && k.ahead <= e.fenceSeen):
			// Something from elsewhere took the name.
			e.drop(k)
			n := e.enter(dir, name, s)
			root, path := n.place()
			e.emit(Event{Kind: Rename, IsDir: s.dir, Root: root, Path: path, OldRoot: root, Time: h.at})
			if !s.exists {
				e.doubt(h.name)
			}
			e.into(n, h.at)
			e.ruledAt(dir, name, h.at)
		default:
			e.doubt(h.name)
		}
		return
	}
	n := e.enter(dir, name, s)
	e.tell(Create, n, h.at)
	if !s.exists {
		e.doubt(h.name)
	}
	e.into(n, h.at)
	e.ruledAt(dir, name, h.at)
}

// enter puts an entry into the table.
func (e *engine) enter(dir *node, name string, s state) *node {
	n := &node{state: s}
	n.put(dir, name)
	return n
}

// into watches and lists n, if it is a directory that is new to the table, and tells what is in it.
func (e *engine) into(n *node, at time.Time) {
	if !n.state.dir || e.shallow {
		return
	}
	e.list(n, func(k *node) { e.tell(Create, k, at) })
}

func (e *engine) modified(h *hint) {
	dir, name := e.find(h.name)
	if dir == nil || name == "" {
		return // kqueue and Windows tell that the contents of a directory changed
	}
	k := dir.kids[name]
	if k == nil {
		if dir.leftOut(name, false) || !look(h.name).exists {
			return
		}
		e.created(h)
		if k = dir.kids[name]; k == nil {
			return
		}
	}
	if k.state.dir {
		return
	}
	if s := look(h.name); s.id.is(k.state.id) {
		k.state = s
	}
	e.tell(Modify, k, h.at)
	e.ruledAt(dir, name, h.at)
}

func (e *engine) changed(h *hint) {
	k := e.known(h.name)
	if k == nil || (e.sys.files && !look(h.name).exists) {
		return
	}
	e.tell(Attrib, k, h.at)
}

// removed handles a name that has gone for good.
func (e *engine) removed(h *hint) {
	k := e.known(h.name)
	if k == nil {
		e.doubtUnknown(h.name)
		return
	}
	s := look(h.name)
	if s.id.is(k.state.id) && (k.top != nil || k.ahead > e.fenceSeen) {
		return // it told of an earlier one of this name
	}
	if k.top != nil {
		e.rootGone(k.top, h.at)
		return
	}
	e.delete(k, h.at)
	e.ruledAt(k.parent, k.name, h.at)
	if s.exists {
		e.doubt(h.name)
	}
}

// delete tells that k is gone, and before it what was in it.
func (e *engine) delete(k *node, at time.Time) {
	var gone []*node
	k.below(func(n *node) { gone = append(gone, n) })
	for i := len(gone) - 1; i >= 0; i-- {
		e.tell(Delete, gone[i], at)
	}
	e.tell(Delete, k, at)
	e.drop(k)
}

// drop takes k with all below it out of the table, and their watches off.
func (e *engine) drop(k *node) {
	e.unwatch(k)
	k.take()
}

func (e *engine) unwatch(k *node) {
	if k.state.dir && !e.shallow {
		e.forget(k, k.path())
	}
}

// forget takes the watches off n and what is below, under the path that n had.
func (e *engine) forget(n *node, path string) {
	// What the system has taken off itself is no error.
	_ = e.watch.Remove(path)
	for name, k := range n.kids {
		below := path + string(filepath.Separator) + name
		if k.state.dir {
			e.forget(k, below)
		} else if e.sys.files {
			_ = e.watch.Remove(below)
		}
	}
}

func (e *engine) rootGone(t *top, at time.Time) {
	if t.gone {
		return
	}
	t.gone = true
	var gone []*node
	t.node.below(func(n *node) { gone = append(gone, n) })
	for i := len(gone) - 1; i >= 0; i-- {
		e.tell(Delete, gone[i], at)
	}
	e.tell(Delete, t.node, at)
	e.unwatch(t.node)
	t.node.kids = nil
	for _, t := range e.tops {
		if !t.gone || t.index < 0 {
			return
		}
	}
	e.failed = ErrRootGone
}

// doubt has path looked at when all that is queued about it has been heard.
func (e *engine) doubt(path string) {
	if e.doubts == nil {
		e.doubts = make(map[string]uint64)
	}
	e.doubts[path], e.fenceWants = e.fenceMade+1, true
}

// doubtUnknown is for a notification that something has left a name of which nothing is known.
func (e *engine) doubtUnknown(path string) {
	if dir, name := e.find(path); dir != nil && name != "" && !dir.leftOut(name, false) {
		e.doubt(path)
	}
}

// settle looks again at the names in doubt. Nothing is queued.
func (e *engine) settle(now time.Time) {
	for path, fence := range e.doubts {
		if fence > e.fenceSeen {
			continue
		}
		delete(e.doubts, path)
		dir, name := e.find(path)
		if dir == nil || name == "" {
			continue
		}
		path = dir.join(name)
		k, s := dir.kids[name], look(path)
		if k != nil && k.state.id.is(s.id) {
			if k.state.dir {
				// It may have been elsewhere when it was to be watched.
				e.again([]*node{k}, []string{path}, now)
			}
			continue
		}
		if k != nil && e.adopt(k, s, now) {
			continue
		}
		if k != nil {
			e.delete(k, now)
		}
		if s.exists && !dir.leftOut(name, s.dir) {
			n := e.enter(dir, name, s)
			e.isAhead(n)
			e.tell(Create, n, now)
			e.into(n, now)
		}
		e.ruledAt(dir, name, now)
	}
	if e.trouble > 0 && e.trouble <= e.fenceSeen {
		e.trouble = 0
		e.audit(now)
	}
	if e.fenceWants && e.failed == nil {
		e.fenceWants = false
		e.makeFence()
	}
}

// adopt takes s for the state of k, if k was gone when its notification came so that nothing is known of it.
func (e *engine) adopt(k *node, s state, at time.Time) bool {
	if k.state.exists || !s.exists || k.top != nil || k.parent.leftOut(k.name, s.dir) {
		return false
	}
	k.state = s
	e.into(k, at)
	return true
}

func (e *engine) isAhead(n *node) {
	n.ahead, e.fenceWants = e.fenceMade+1, true
}

// makeFence makes the next fence. Its notification comes after all that are queued.
func (e *engine) makeFence() {
	e.fenceMade++
	path := filepath.Join(e.fenceDir, strconv.FormatUint(e.fenceMade, 10))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		e.failed = fmt.Errorf("make a fence: %w", err)
		return
	}
	if err := f.Close(); err != nil {
		e.failed = fmt.Errorf("make a fence: %w", err)
	}
}

func (e *engine) fence(h *hint) {
	if !h.op.Has(fsnotify.Create) {
		return
	}
	n, err := strconv.ParseUint(filepath.Base(h.raw), 10, 64)
	if err != nil {
		return
	}
	if err := os.Remove(h.raw); err != nil {
		e.log.Debug("cannot remove a fence", "path", h.raw, "err", err)
	}
	e.passed(n)
}

func (e *engine) passed(fence uint64) {
	e.fenceSeen = max(e.fenceSeen, fence)
	keep := e.aliases[:0]
	for _, a := range e.aliases {
		if a.fence > e.fenceSeen {
			keep = append(keep, a)
		}
	}
	e.aliases = keep
	for path, fence := range e.selves {
		if fence <= e.fenceSeen {
			delete(e.selves, path)
		}
	}
}
