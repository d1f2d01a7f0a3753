//go:build linux

package tree

import (
	"strings"

	"github.com/heraldfs/heraldfs/internal/ignore"
	"github.com/heraldfs/heraldfs/notify"
)

// maxDepth bounds the climb to a root. PATH_MAX does not bound the depth of a
// tree, so it is generous; a longer chain can only be a cycle made by lost events.
const maxDepth = 1 << 16

// node is a directory.
type node struct {
	obj    notify.Object // zero: its handle is not known
	parent *node         // nil: a directory above which we know nothing
	name   string
	kids   map[string]*node
	root   int            // index of the root that it is, or -1
	files  map[string]int // roots that are files in this directory

	loose bool // it was looked up, and may have moved before: nothing is sure until a fence
	// scope is what is left out in it, good while gen is the table's. rules are the patterns in the directory itself,
	// if ruled says that they were read.
	scope *ignore.Scope
	rules *ignore.Rules
	ruled bool

	marked  bool
	untold  bool   // it is not known whether it exists
	triedAt uint64 // engine.moves, plus one, when it was last tried to be marked

	// memo of locate, good while gen is the table's
	gen      uint64
	path     string // "" for a root
	pathRoot int    // or outside, or unsure
}

// What locate says instead of a root.
const (
	outside = -1
	unsure  = -2
)

// table knows where directories are, at one point of the event stream.
type table struct {
	nodes   map[notify.Object]*node
	gen     uint64
	roots   []*node
	shallow bool // roots only, nothing below
	scope   *ignore.Scope
	// load reads the patterns in a directory; nil if such files mean nothing.
	load func(n *node, root int, path string) *ignore.Rules
}

func newTable(shallow bool) *table {
	return &table{nodes: make(map[notify.Object]*node), gen: 1, shallow: shallow}
}

func (t *table) addRoot(obj notify.Object, index int, file string) *node {
	n := t.nodes[obj]
	if n == nil {
		n = &node{obj: obj, root: -1}
		t.nodes[obj] = n
		t.roots = append(t.roots, n)
	}
	if file == "" {
		n.root = index
	} else {
		if n.files == nil {
			n.files = make(map[string]int)
		}
		n.files[file] = index
	}
	t.gen++
	return n
}

// reset forgets everything but the roots.
func (t *table) reset() {
	t.nodes = make(map[notify.Object]*node, len(t.roots))
	for _, r := range t.roots {
		r.parent, r.kids, r.ruled = nil, nil, false
		t.nodes[r.obj] = r
	}
	t.gen++
}

// locate returns the root that n is in, and n's path below it.
func (t *table) locate(n *node) (root int, path string) {
	return t.locateAt(n, 0)
}

func (t *table) locateAt(n *node, depth int) (int, string) {
	if n.gen == t.gen {
		return n.pathRoot, n.path
	}
	root, path := outside, ""
	switch {
	case n.root >= 0:
		root, n.scope = n.root, t.scope
	case n.loose:
		root = unsure
	case n.parent == nil || depth > maxDepth:
	default:
		r, p := t.locateAt(n.parent, depth+1)
		if root = r; r >= 0 {
			path, n.scope = join(p, n.name), n.parent.scope
			if n.scope.Ignored(path, true) {
				root, path = outside, ""
			}
		}
	}
	if root >= 0 && t.load != nil {
		if !n.ruled {
			n.rules, n.ruled = t.load(n, root, path), true
		}
		n.scope = n.scope.In(path, n.rules)
	}
	n.gen, n.path, n.pathRoot = t.gen, path, root
	return root, path
}

// entry returns where name in the directory n is. The name "." is n itself. What is left out is outside.
func (t *table) entry(n *node, name string, isDir bool) (root int, path string) {
	if n == nil {
		return outside, ""
	}
	if i, ok := n.files[name]; ok {
		return i, "."
	}
	root, path = t.locate(n)
	if root < 0 {
		return root, ""
	}
	if name != "." && name != "" {
		path = join(path, name)
		if n.scope.Ignored(path, isDir) {
			return outside, ""
		}
	} else if path == "" {
		path = "."
	}
	if t.shallow && strings.IndexByte(path, '/') >= 0 {
		return outside, ""
	}
	return root, path
}

func (t *table) inside(n *node) bool {
	if n == nil {
		return false
	}
	root, _ := t.locate(n)
	return root >= 0
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// place puts n at (parent, name), taking the place of whatever was there.
func (t *table) place(n, parent *node, name string) {
	if n.parent == parent && n.name == name && parent != nil && parent.kids[name] == n {
		return
	}
	t.unlink(n)
	if parent == nil {
		return
	}
	if old := parent.kids[name]; old != nil {
		t.remove(old)
	}
	if parent.kids == nil {
		parent.kids = make(map[string]*node)
	}
	parent.kids[name] = n
	n.parent, n.name = parent, name
}

// unlink takes n out of its parent. It stays known, as a directory outside.
func (t *table) unlink(n *node) {
	if n.parent != nil {
		if n.parent.kids[n.name] == n {
			delete(n.parent.kids, n.name)
		}
		n.parent, n.name = nil, ""
	}
	t.forgetPath(n)
}

// forgetPath makes n, and all that is below it, be located anew.
func (t *table) forgetPath(n *node) {
	switch {
	case n.gen != t.gen: // nor was anything below it located
	case len(n.kids) == 0:
		n.gen = 0
	default:
		t.gen++
	}
}

// remove forgets n. What was below it stays known as outside, unless drop tells otherwise.
func (t *table) remove(n *node) {
	t.unlink(n)
	if t.nodes[n.obj] == n && n.root < 0 && n.files == nil {
		delete(t.nodes, n.obj)
	}
}

// drop forgets n and all that is below it, telling each.
func (t *table) drop(n *node, each func(*node)) {
	t.remove(n)
	stack := []*node{n}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, k := range n.kids {
			stack = append(stack, k)
			if t.nodes[k.obj] == k {
				delete(t.nodes, k.obj)
			}
		}
		each(n)
	}
}

// bind gives n its handle.
func (t *table) bind(n *node, obj notify.Object) {
	if n.obj == obj && t.nodes[obj] == n {
		return
	}
	if t.nodes[n.obj] == n {
		delete(t.nodes, n.obj)
	}
	n.obj = obj
	if !obj.IsZero() {
		t.nodes[obj] = n
	}
}
