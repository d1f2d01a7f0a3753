package portable

import (
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/heraldfs/heraldfs/internal/ignore"
)

// identity tells one file from all others that exist; zero is not known.
type identity struct {
	volume, file uint64
	born         int64 // nanoseconds, 0 where that is not known
}

func (id identity) is(other identity) bool { return id == other && id != identity{} }

// state is what the disk says of a name.
type state struct {
	exists bool
	dir    bool
	id     identity
	size   int64
	mtime  time.Time
}

// look asks the disk about path, following no symlink.
func look(path string) state {
	fi, err := os.Lstat(path)
	if err != nil {
		return state{}
	}
	return stateOf(path, fi)
}

func stateOf(path string, fi fs.FileInfo) state {
	id, gone := identify(path, fi)
	if gone {
		return state{}
	}
	s := state{exists: true, dir: fi.IsDir(), id: id}
	if !s.dir {
		s.size, s.mtime = fi.Size(), fi.ModTime()
	}
	return s
}

// node is an entry of a watched directory, or a root.
type node struct {
	parent *node
	name   string
	kids   map[string]*node // of a directory, nil until there are any
	state  state
	// ahead is the fence until which the notifications may be older than what is known.
	ahead uint64

	top   *top          // of a root
	scope *ignore.Scope // of a directory: what is left out in it
}

// top is a watched directory that is a root, or in which roots are that are files.
type top struct {
	path  string
	node  *node
	index int            // -1: only files are roots
	files map[string]int // by name
	scope *ignore.Scope  // of the patterns that were given
	gone  bool
}

// path is the absolute path of n.
func (n *node) path() string {
	if n.top != nil {
		return n.top.path
	}
	return n.parent.join(n.name)
}

// join is the absolute path of name in n.
func (n *node) join(name string) string {
	dir := n.path()
	if strings.HasSuffix(dir, string(filepath.Separator)) {
		return dir + name
	}
	return dir + string(filepath.Separator) + name
}

// place is the root that n is in, and its path below it.
func (n *node) place() (root int, path string) {
	if n.top != nil {
		return n.top.index, "."
	}
	return n.parent.entry(n.name)
}

// entry is the root and the path of name in the directory n. The root is -1 for what is not watched.
func (n *node) entry(name string) (root int, path string) {
	if n.top != nil {
		if i, ok := n.top.files[name]; ok {
			return i, "."
		}
		return n.top.index, name
	}
	root, path = n.place()
	return root, path + "/" + name
}

// leftOut reports whether nothing is to be told of name in the directory n.
func (n *node) leftOut(name string, isDir bool) bool {
	root, path := n.entry(name)
	return root < 0 || (path != "." && n.scope.Ignored(path, isDir))
}

func (n *node) put(parent *node, name string) {
	if parent.kids == nil {
		parent.kids = make(map[string]*node)
	}
	parent.kids[name] = n
	n.parent, n.name = parent, name
}

// take takes n out of the table.
func (n *node) take() {
	if n.parent != nil && n.parent.kids[n.name] == n {
		delete(n.parent.kids, n.name)
	}
}

// below calls f with each entry below n, those of a directory after it.
func (n *node) below(f func(*node)) {
	for _, name := range n.names() {
		f(n.kids[name])
		n.kids[name].below(f)
	}
}

func (n *node) names() []string {
	names := make([]string, 0, len(n.kids))
	for name := range n.kids {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// alias says that notifications may still call what is at to by the path from, until the fence.
type alias struct {
	from, to string
	fence    uint64
}

// find returns the directory that the absolute path is in, if it is known, and the last component; and for the
// path of a root the root and "".
func (e *engine) find(path string) (dir *node, name string) {
	dir, name = e.findExact(path)
	for i := len(e.aliases) - 1; i >= 0 && dir == nil; i-- {
		a := &e.aliases[i]
		if rest, ok := strings.CutPrefix(path, a.from+string(filepath.Separator)); ok && a.fence > e.fenceSeen {
			path = a.to + string(filepath.Separator) + rest
			dir, name = e.findExact(path)
		}
	}
	return dir, name
}

// resolve is the path that a notification's means now.
func (e *engine) resolve(path string) string {
	if dir, name := e.find(path); dir != nil && name != "" {
		return dir.join(name)
	}
	return path
}

func (e *engine) findExact(path string) (dir *node, name string) {
	for _, t := range e.tops {
		if path == t.path {
			return t.node, ""
		}
		prefix := t.path
		if !strings.HasSuffix(prefix, string(filepath.Separator)) {
			prefix += string(filepath.Separator)
		}
		rest, ok := strings.CutPrefix(path, prefix)
		if !ok {
			continue
		}
		dir := t.node
		for {
			head, tail, more := strings.Cut(rest, string(filepath.Separator))
			if !more {
				return dir, head
			}
			if dir = dir.kids[head]; dir == nil || !dir.state.dir {
				break
			}
			rest = tail
		}
	}
	return nil, ""
}

// known returns the entry at path, nil if there is none.
func (e *engine) known(path string) *node {
	dir, name := e.find(path)
	if dir == nil || name == "" {
		return dir
	}
	return dir.kids[name]
}
