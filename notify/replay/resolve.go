package replay

import (
	"cmp"
	"slices"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/heraldfs/heraldfs/notify"
)

// Resolver stands between the replay and a Source on another machine, whose events (those with a
// Remote) name directories by path and objects in that machine's terms. Paths are of the time of
// the event, and so is the view when the event's turn has come: that is when they are resolved.
type Resolver interface {
	// Resolve makes the Tree know the event's objects, as far as the guest knows them, and sets
	// its Time by our clock. It is called on the replayer's thread and must touch no file.
	Resolve(v View, ev *notify.Event) Verdict
	// Settle returns when the wrapped file system shows what the event tells, or a bound has passed.
	// It is called for what is about to be replayed.
	Settle(ev *notify.Event)
	// Exact says that Tree.Obtain finds an object whatever its name is.
	Exact() bool
}

// Verdict is what a Resolver thinks of an event.
type Verdict uint8

// The verdicts. An Echo was the guest's own doing, and its watchers have heard of it: at most caches
// are dropped. A Known echo needs not even that.
const (
	Keep Verdict = iota
	Drop
	Echo
	KnownEcho
)

// View is what the guest's kernel was told, for a Resolver.
type View struct{ v *view }

// Seen is what a name stands for. The zero Seen is nothing.
type Seen struct {
	Node         uint64
	Ino          uint64
	Links        uint32 // as the guest's kernel has it
	IsDir, Ghost bool
}

func seen(n *vnode) Seen {
	if n == nil {
		return Seen{}
	}
	return Seen{Node: n.id, Ino: n.ino, Links: n.nlink, IsDir: n.isDir(), Ghost: n.isGhost()}
}

// Child returns what the guest's kernel may have cached for a name, and what the name stood for
// before the events that are still to come.
func (v View) Child(parent uint64, name string) (now, before Seen) {
	n, b := v.v.lookup(parent, name)
	v.v.mu.Lock()
	defer v.v.mu.Unlock()
	return seen(n), seen(b)
}

// Walk returns the directory that a path led to before the events that are still to come, if
// the guest knows it. It asks nobody.
func (v View) Walk(path string) (nodeid uint64, ok bool) {
	at := uint64(rootID)
	if path == "" {
		return at, true
	}
	for name := range strings.SplitSeq(path, "/") {
		now, before := v.v.lookup(at, name)
		switch {
		case real(before):
			at = before.id
		case real(now): // found by a guest process while only its name was known
			at = now.id
		default:
			return 0, false
		}
	}
	return at, true
}

func real(n *vnode) bool { return n != nil && n.isDir() && !n.isGhost() }

// each calls yield with every inode that the guest's kernel holds, and its names.
func (v View) each(yield func(n *vnode, names []nameKey)) {
	type item struct {
		n     *vnode
		names []nameKey
	}
	v.v.mu.Lock()
	all := make([]item, 0, v.v.nodes.Len())
	for id, n := range v.v.nodes.All() {
		if ours(id) {
			continue
		}
		it := item{n: n}
		for e := range n.edgesLocked() {
			if !ours(e.parent.id) {
				it.names = append(it.names, nameKey{e.parent.id, e.name})
			}
		}
		all = append(all, it)
	}
	v.v.mu.Unlock()
	for _, it := range all {
		yield(it.n, it.names)
	}
}

// Stale makes the guest's kernel ask again for all that it has cached, but pages, which go with the
// attributes that they belong to. For when nobody tells of changes any more. Not for
// handlers.
func (f *FS) Stale(to Notifier) {
	View{f.view}.each(func(n *vnode, names []nameKey) {
		for _, k := range names {
			_ = to.InvalEntry(k.parent, k.name, true) // at worst nothing was cached
		}
		_ = to.InvalInode(n.id, -1, 0)
	})
}

// resolved prepares an event of another machine, and reports whether it is to be replayed.
func (r *Replayer) resolved(ev *notify.Event) bool {
	switch r.cfg.Resolver.Resolve(View{r.view}, ev) {
	case Echo:
		r.stats.Echoes.Add(1)
		r.cohere(ev)
		return false
	case KnownEcho:
		r.stats.Echoes.Add(1)
		return false
	case Drop:
		r.stats.Dropped.Add(1)
		return false
	}
	return true
}

// settled lets the wrapped file system catch up with ev.
func (r *Replayer) settled(ev *notify.Event) {
	if ev.Op != notify.OpOverflow {
		r.far.serve.run(func() { r.cfg.Resolver.Settle(ev) })
	}
}

// byName reports whether an object can be found by its name only.
func (r *Replayer) byName(obj notify.Object, near uint64) bool {
	if obj.IsZero() {
		return true
	}
	return r.cfg.Resolver != nil && !r.cfg.Resolver.Exact() && r.object(obj, near) == nil
}

// relearn looks every name of the known directories up, from the top, so that a file server which goes by
// paths learns where the directories are that the host has moved. A directory can have moved into one
// that is only found so; the second time it is.
func (r *Replayer) relearn(dirs []uint64) {
	slices.SortStableFunc(dirs, func(a, b uint64) int { return cmp.Compare(r.view.depth(a), r.view.depth(b)) })
	for range 2 {
		for _, id := range dirs {
			// What cannot be listed is compared as it is.
			_ = r.tree.Names(id, func(name string, _ bool) bool {
				var out fuse.EntryOut
				if r.tree.Obtain(notify.Object{}, id, name, &out).Ok() {
					r.far.Forget(out.NodeId, 1)
				}
				return true
			})
		}
	}
}
