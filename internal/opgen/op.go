package opgen

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Kind is what an operation does.
type Kind int

// The kinds.
const (
	Create        Kind = iota + 1 // open(O_CREAT|O_EXCL), write unless empty, close
	Write                         // open(O_TRUNC), write, close
	Append                        // open(O_APPEND), write, close
	Rewrite                       // write other bytes of the same size in place
	Truncate                      // truncate(2) to another size
	Chmod                         // of a file
	ChmodDir                      //
	Utimes                        // both times
	Rename                        // within a directory
	RenameTo                      // to another directory
	RenameOver                    // over a file
	Exchange                      // RENAME_EXCHANGE of any two
	Link                          // a second name for a file
	Unlink                        // any name of a file or symlink
	Symlink                       //
	Mkdir                         //
	Rmdir                         // an empty directory
	RenameDir                     // with all that is in it, anywhere
	RenameDirOver                 // over an empty directory
	MkdirAll                      // nested directories with files, as mkdir -p and cp -r make them
	RemoveAll                     // as rm -r does
	MoveOut                       // a file or directory, out of the tree
	MoveIn                        // back in
	lastKind
)

var kindNames = [...]string{
	Create: "create", Write: "write", Append: "append", Rewrite: "rewrite", Truncate: "truncate",
	Chmod: "chmod", ChmodDir: "chmod-dir", Utimes: "utimes", Rename: "rename", RenameTo: "rename-to",
	RenameOver: "rename-over", Exchange: "exchange", Link: "link", Unlink: "unlink", Symlink: "symlink",
	Mkdir: "mkdir", Rmdir: "rmdir", RenameDir: "rename-dir", RenameDirOver: "rename-dir-over",
	MkdirAll: "mkdir-all", RemoveAll: "remove-all", MoveOut: "move-out", MoveIn: "move-in",
}

func (k Kind) String() string {
	if k > 0 && int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", int(k))
}

// Kinds lists all kinds.
func Kinds() []Kind {
	var kinds []Kind
	for k := Create; k < lastKind; k++ {
		kinds = append(kinds, k)
	}
	return kinds
}

// weigh repeats each kind as often as it is likely: a tree fills with files, and
// changes of contents are the most frequent.
func weigh(opts Options) []Kind {
	often := map[Kind]int{Create: 6, Write: 4, Append: 3, Rewrite: 3, Unlink: 3, Rename: 3, RenameOver: 3, Mkdir: 2}
	all := opts.Kinds
	if len(all) == 0 {
		all = Kinds()
	}
	var kinds []Kind
	for _, k := range all {
		if (k == MoveOut || k == MoveIn) && opts.Outside == "" || k <= 0 || k >= lastKind {
			continue
		}
		kinds = append(kinds, slices.Repeat([]Kind{k}, max(1, often[k]))...)
	}
	return kinds
}

// Op is an operation that was performed.
type Op struct {
	// N counts the operations of a Generator from 1.
	N    int
	Kind Kind
	// Path is relative to Root, and so is To for what has a second path. Of a move
	// in or out the path outside is absolute.
	Path, To string
	// Detail is for messages: a size or a mode.
	Detail string
}

func (op Op) String() string {
	s := fmt.Sprintf("#%d %v %s", op.N, op.Kind, op.Path)
	if op.To != "" {
		s += " -> " + op.To
	}
	if op.Detail != "" {
		s += " (" + op.Detail + ")"
	}
	return s
}

// Entry is what must be at a path.
type Entry struct {
	// Mode is the type and the permissions; a symlink has 0777.
	Mode os.FileMode
	// Content is a file's. Do not change it.
	Content []byte
	// Target is a symlink's.
	Target string
	// Nlink is the number of a file's names, those outside the tree included.
	Nlink int
	// File tells files apart: two paths with the same number are the same file.
	File int
}

// Tree returns the whole tree by paths relative to Root, without Root itself.
func (g *Generator) Tree() map[string]Entry {
	tree := map[string]Entry{}
	g.root.list("", tree)
	return tree
}

func (n *node) list(at string, tree map[string]Entry) {
	for name, kid := range n.kids {
		path := filepath.Join(at, name)
		tree[path] = kid.entry()
		if kid.kind == directory {
			kid.list(path, tree)
		}
	}
}

func (n *node) entry() Entry {
	switch n.kind {
	case directory:
		return Entry{Mode: os.ModeDir | n.mode, File: n.id}
	case symlink:
		return Entry{Mode: os.ModeSymlink | 0o777, Target: n.target, Nlink: n.nlink, File: n.id}
	default:
		return Entry{Mode: n.mode, Content: n.data, Nlink: n.nlink, File: n.id}
	}
}

// Lookup returns what must be at a path relative to Root.
func (g *Generator) Lookup(path string) (Entry, bool) {
	dir, name := filepath.Split(filepath.Clean(path))
	at := g.root
	for _, part := range splitPath(dir) {
		at = at.kids[part]
		if at == nil || at.kind != directory {
			return Entry{}, false
		}
	}
	if name == "." {
		return at.entry(), true
	}
	kid, ok := at.kids[name]
	if !ok {
		return Entry{}, false
	}
	return kid.entry(), true
}
