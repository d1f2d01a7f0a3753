package opgen

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// staticShare is the part of the operations, in percent, that concern an entry of a
// static directory.
const staticShare = 75

// place is an entry of a directory, there or not.
type place struct {
	dir  *node
	name string
}

func (p place) rel() string { return filepath.Join(p.dir.rel(), p.name) }
func (p place) node() *node { return p.dir.kids[p.name] }

// choose finds an operation of a kind. It changes the model at once, and returns
// what changes the host, which no longer looks at the model: that may be ahead by then.
// ok is false if the dice fell on nothing possible.
func (g *Generator) choose(kind Kind) (act func() error, op Op, ok bool) {
	switch kind {
	case Create, Symlink, Mkdir, MkdirAll:
		return g.chooseNew(kind)
	case Write, Append, Rewrite, Truncate, Chmod, Utimes, ChmodDir:
		return g.chooseChange(kind)
	case Rename, RenameTo, RenameOver, RenameDir, RenameDirOver, Exchange, Link:
		return g.chooseTwo(kind)
	case Unlink, Rmdir, RemoveAll:
		return g.chooseRemove(kind)
	default:
		return g.chooseMove(kind)
	}
}

func (g *Generator) chooseNew(kind Kind) (func() error, Op, bool) {
	p, ok := g.free(kind == Mkdir || kind == MkdirAll)
	if !ok {
		return nil, Op{}, false
	}
	path := g.abs(p.rel())
	op := Op{Path: p.rel()}
	switch kind {
	case Create:
		n := g.newNode(file, 0o644)
		if g.rand.IntN(4) > 0 {
			n.data = g.content(1 + g.rand.IntN(3000))
		}
		p.dir.put(p.name, n)
		op.Detail = fmt.Sprint(len(n.data), " bytes")
		data := n.data
		return func() error { return create(path, data) }, op, true
	case Symlink:
		n := g.newNode(symlink, 0o777)
		target := fmt.Sprint("target-", n.id)
		n.target = target
		p.dir.put(p.name, n)
		op.Detail = "to " + target
		return func() error { return os.Symlink(target, path) }, op, true
	case Mkdir:
		p.dir.put(p.name, g.newNode(directory, 0o755))
		return func() error { return mkdir(path) }, op, true
	default:
		steps := g.plant(p, g.opts.MaxDepth-p.dir.depth())
		op.Detail = fmt.Sprint(len(steps), " entries")
		return all(steps), op, true
	}
}

// plant makes a directory with files, and directories in it, up to depth deep.
func (g *Generator) plant(p place, depth int) []func() error {
	dir := g.newNode(directory, 0o755)
	p.dir.put(p.name, dir)
	path := g.abs(p.rel())
	steps := []func() error{func() error { return mkdir(path) }}
	for i := range 1 + g.rand.IntN(3) {
		f := g.newNode(file, 0o644)
		data, name := g.content(1+g.rand.IntN(200)), g.nameOf(i)
		f.data = data
		dir.put(name, f)
		steps = append(steps, func() error { return create(filepath.Join(path, name), data) })
	}
	if depth > 1 && g.rand.IntN(4) > 0 {
		steps = append(steps, g.plant(place{dir, g.nameOf(g.opts.Names)}, depth-1)...)
	}
	return steps
}

func (g *Generator) chooseChange(kind Kind) (func() error, Op, bool) {
	if kind == ChmodDir {
		dir := g.dir()
		dir.mode ^= 0o020
		path, mode := g.abs(dir.rel()), dir.mode
		op := Op{Path: dir.rel(), Detail: fmt.Sprintf("%#o", mode)}
		return func() error { return os.Chmod(path, mode) }, op, true
	}
	p, ok := g.taken(func(n *node) bool { return n.kind == file })
	if !ok {
		return nil, Op{}, false
	}
	n, path := p.node(), g.abs(p.rel())
	op := Op{Path: p.rel()}
	size := func() { op.Detail = fmt.Sprint(len(n.data), " bytes") }
	switch kind {
	case Write:
		n.data = g.content(1 + g.rand.IntN(3000))
		size()
		data := n.data
		return func() error { return put(path, unix.O_TRUNC, data) }, op, true
	case Append:
		more := g.content(1 + g.rand.IntN(500))
		n.data = append(n.data[:len(n.data):len(n.data)], more...)
		size()
		return func() error { return put(path, unix.O_APPEND, more) }, op, true
	case Rewrite:
		if len(n.data) == 0 {
			return nil, Op{}, false
		}
		n.data = g.content(len(n.data))
		size()
		data := n.data
		return func() error { return put(path, 0, data) }, op, true
	case Truncate:
		to := g.rand.IntN(3000)
		data := make([]byte, to)
		copy(data, n.data)
		n.data = data
		size()
		return func() error { return os.Truncate(path, int64(to)) }, op, true
	case Chmod:
		n.mode ^= 0o111
		mode := n.mode
		op.Detail = fmt.Sprintf("%#o", mode)
		return func() error { return os.Chmod(path, mode) }, op, true
	default:
		at := time.Unix(1_500_000_000+int64(g.rand.IntN(1_000_000)), 0)
		return func() error { return os.Chtimes(path, at, at) }, op, true
	}
}

func (g *Generator) chooseRemove(kind Kind) (func() error, Op, bool) {
	p, ok := g.taken(func(n *node) bool {
		switch kind {
		case Rmdir:
			return n.kind == directory && !n.static && len(n.kids) == 0
		case RemoveAll:
			return n.kind == directory && !n.static
		default:
			return n.kind != directory
		}
	})
	if !ok {
		return nil, Op{}, false
	}
	steps := g.uproot(p)
	op := Op{Path: p.rel()}
	if kind == RemoveAll {
		op.Detail = fmt.Sprint(len(steps), " entries")
	}
	return all(steps), op, true
}

// uproot removes an entry, and first what is in it.
func (g *Generator) uproot(p place) []func() error {
	n, path := p.node(), g.abs(p.rel())
	var steps []func() error
	if n.kind == directory {
		for _, name := range n.names() {
			steps = append(steps, g.uproot(place{n, name})...)
		}
		steps = append(steps, func() error { return unix.Rmdir(path) })
	} else {
		steps = append(steps, func() error { return unix.Unlink(path) })
	}
	p.dir.take(p.name)
	return steps
}

// chooseMove moves an entry to a name of its own in the outside directory, or back.
func (g *Generator) chooseMove(kind Kind) (func() error, Op, bool) {
	if kind == MoveOut {
		p, ok := g.taken(func(n *node) bool { return !n.static })
		if !ok {
			return nil, Op{}, false
		}
		op := Op{Path: p.rel()}
		n := p.dir.take(p.name)
		n.up = nil
		n.nlink++ // its name outside
		g.outside = append(g.outside, n)
		op.To = g.outsidePath(n, len(g.outside)-1)
		return rename(g.abs(op.Path), op.To, 0), op, true
	}
	if len(g.outside) == 0 {
		return nil, Op{}, false
	}
	last := len(g.outside) - 1
	n := g.outside[last]
	p, ok := g.free(n.kind == directory)
	if !ok || n.kind == directory && p.dir.depth()+n.height() > g.opts.MaxDepth {
		return nil, Op{}, false
	}
	op := Op{Path: g.outsidePath(n, last), To: p.rel()}
	g.outside = g.outside[:last]
	n.nlink--
	p.dir.put(p.name, n)
	return rename(op.Path, g.abs(op.To), 0), op, true
}

// outsidePath is unique: a file can be outside under two of its names.
func (g *Generator) outsidePath(n *node, slot int) string {
	return filepath.Join(g.opts.Outside, fmt.Sprintf("out-%d-%d", n.id, slot))
}

// dir draws a directory, most often a static one.
func (g *Generator) dir() *node {
	at := g.static[g.rand.IntN(len(g.static))]
	for g.rand.IntN(100) >= staticShare {
		var down []*node
		for _, name := range at.names() {
			if kid := at.kids[name]; kid.kind == directory && !kid.static {
				down = append(down, kid)
			}
		}
		if len(down) == 0 {
			break
		}
		at = down[g.rand.IntN(len(down))]
	}
	return at
}

// free draws an entry that does not exist, with room below it for a directory if asked.
func (g *Generator) free(forDir bool) (place, bool) {
	p := place{g.dir(), g.nameOf(g.rand.IntN(g.opts.Names))}
	return p, p.node() == nil && (!forDir || p.dir.depth() < g.opts.MaxDepth)
}

// taken draws an entry that exists and is as asked.
func (g *Generator) taken(ok func(*node) bool) (place, bool) {
	dir := g.dir()
	var fit []string
	for _, name := range dir.names() {
		if ok(dir.kids[name]) {
			fit = append(fit, name)
		}
	}
	if len(fit) == 0 {
		return place{}, false
	}
	return place{dir, fit[g.rand.IntN(len(fit))]}, true
}

// nameOf makes names of several lengths: their length is in the event's size.
func (g *Generator) nameOf(i int) string {
	return fmt.Sprintf("n%d%s", i, strings.Repeat("x", i*5%23))
}

func splitPath(path string) []string {
	path = strings.Trim(filepath.Clean(path), string(filepath.Separator))
	if path == "." || path == "" {
		return nil
	}
	return strings.Split(path, string(filepath.Separator))
}
