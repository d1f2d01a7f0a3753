package portable

import (
	"io/fs"
	"path/filepath"
	"time"
)

// comparison is one run of compare.
type comparison struct {
	e  *engine
	at time.Time
	// gone are entries that were not found where they were, by identity; lost are all of them in order. Those
	// that were told are in neither of the two any more, or dealt with.
	gone  map[identity]*node
	lost  []*node
	dealt map[*node]bool
	// come are entries that the table did not have, told has those that are done with or about to be.
	come   []*node
	comeBy map[identity]*node
	told   map[*node]bool
	taken  map[*node]*node // whose name an entry has taken
}

// compare watches and lists directories with all below them, and tells how they differ from the table: renames, as
// far as identities show them, then what came, what changed, and what went. queued says that notifications may be
// on their way which tell where something went.
func (e *engine) compare(dirs []*node, queued bool, at time.Time) {
	c := comparison{e: e, at: at, gone: make(map[identity]*node), dealt: make(map[*node]bool), comeBy: make(map[identity]*node),
		told: make(map[*node]bool), taken: make(map[*node]*node)}
	for _, n := range dirs {
		c.walk(n)
	}
	for i := 0; i < len(c.come); i++ { // it grows
		c.arrived(c.come[i])
	}
	for i := len(c.lost) - 1; i >= 0; i-- {
		n := c.lost[i]
		if queued && !c.dealt[n] {
			e.doubt(n.path())
			continue
		}
		c.left(n)
	}
}

// walk compares n and the directories below it that the table has.
func (c *comparison) walk(n *node) {
	for todo := []*node{n}; len(todo) > 0 && c.e.failed == nil; {
		n := todo[len(todo)-1]
		todo = append(todo[:len(todo)-1], c.one(n)...)
	}
}

// one compares the directory n and returns the ones in it that have to be.
func (c *comparison) one(n *node) (dirs []*node) {
	e := c.e
	entries, ok := e.open(n)
	if !ok {
		return nil
	}
	for _, name := range n.names() {
		if k := n.kids[name]; n.leftOut(name, k.state.dir) {
			e.drop(k)
		}
	}
	missing := make(map[string]*node, len(n.kids))
	for name, k := range n.kids {
		missing[name] = k
	}
	for _, d := range entries {
		was := n.kids[d.Name()]
		k, fresh := e.meet(n, d)
		switch {
		case k == nil:
		case fresh:
			c.come = append(c.come, k)
			c.comeBy[k.state.id] = k
			if was != nil {
				c.taken[k] = was
			}
		default:
			delete(missing, d.Name())
			c.same(k, d)
			if k.state.dir && !e.shallow {
				dirs = append(dirs, k)
			}
		}
	}
	for _, name := range n.names() {
		if k := missing[name]; k != nil && n.kids[name] == k {
			c.miss(k)
		}
	}
	for name, k := range missing {
		if n.kids[name] != k {
			c.miss(k)
		}
	}
	return dirs
}

func (c *comparison) miss(k *node) {
	c.lost = append(c.lost, k)
	if k.state.id != (identity{}) {
		c.gone[k.state.id] = k
	}
}

// same tells whether the contents of a file that is where it was have changed.
func (c *comparison) same(k *node, d fs.DirEntry) {
	fi, err := d.Info()
	if err != nil || k.state.dir {
		return
	}
	if !fi.ModTime().Equal(k.state.mtime) || fi.Size() != k.state.size {
		k.state.mtime, k.state.size = fi.ModTime(), fi.Size()
		c.e.tell(Modify, k, c.at)
	}
}

// arrived tells an entry that the table did not have.
func (c *comparison) arrived(k *node) {
	if c.told[k] {
		return
	}
	c.told[k] = true
	e := c.e
	if w := c.taken[k]; w != nil {
		if next := c.comeBy[w.state.id]; next != nil {
			c.arrived(next) // it went from here first
		}
		if was := c.gone[k.state.id]; was == nil || was == w || was.state.dir != k.state.dir {
			c.left(w)
		} else if !c.dealt[w] {
			c.replaced(w)
		}
	}
	was := c.gone[k.state.id]
	if was == nil || was.state.dir != k.state.dir {
		e.tell(Create, k, c.at)
		if k.state.dir && !e.shallow {
			c.walk(k)
		}
		return
	}
	oldRoot, oldPath := was.place()
	root, path := k.place()
	e.emit(Event{Kind: Rename, IsDir: k.state.dir, Root: root, Path: path, OldRoot: oldRoot, OldPath: oldPath, Time: c.at})
	old := was.path()
	c.settled(was)
	was.take()
	if !k.state.dir || e.shallow {
		return
	}
	k.kids = was.kids
	for _, kid := range k.kids {
		kid.parent = k
	}
	if !e.sys.follows {
		e.forget(k, filepath.Clean(old))
	}
	c.walk(k)
}

func (c *comparison) settled(n *node) {
	c.dealt[n] = true
	if c.gone[n.state.id] == n {
		delete(c.gone, n.state.id)
	}
}

// left tells that a lost entry is gone.
func (c *comparison) left(n *node) {
	if !c.dealt[n] {
		c.settled(n)
		c.e.delete(n, c.at)
	}
}

// replaced drops a lost entry whose name a renamed one has taken.
func (c *comparison) replaced(n *node) {
	c.settled(n)
	c.e.drop(n)
}
