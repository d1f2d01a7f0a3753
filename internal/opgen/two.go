package opgen

import (
	"os"

	"golang.org/x/sys/unix"
)

// chooseTwo finds an operation on two entries of the tree.
func (g *Generator) chooseTwo(kind Kind) (func() error, Op, bool) {
	dirs := kind == RenameDir || kind == RenameDirOver
	from, ok := g.taken(func(n *node) bool {
		switch {
		case n.static:
			return false
		case kind == Link:
			return n.kind == file
		case kind == Exchange:
			return true
		default:
			return (n.kind == directory) == dirs
		}
	})
	if !ok {
		return nil, Op{}, false
	}
	to, ok := g.target(kind, from)
	if !ok || to == from {
		return nil, Op{}, false
	}
	n := from.node()
	if n.kind == directory && !g.fits(n, to.dir) {
		return nil, Op{}, false
	}
	op := Op{Path: from.rel(), To: to.rel()}
	old, path := g.abs(op.Path), g.abs(op.To)
	switch kind {
	case Link:
		to.dir.put(to.name, n)
		return func() error { return os.Link(old, path) }, op, true
	case Exchange:
		other := to.node()
		if other.kind == directory && (other.static || !g.fits(other, from.dir)) || other == n {
			return nil, Op{}, false
		}
		from.dir.take(from.name)
		to.dir.take(to.name)
		from.dir.put(from.name, other)
		to.dir.put(to.name, n)
		return rename(old, path, unix.RENAME_EXCHANGE), op, true
	default:
		if to.node() == n {
			return nil, Op{}, false // two names of one file: rename would do nothing
		}
		from.dir.take(from.name)
		if to.node() != nil {
			to.dir.take(to.name)
		}
		to.dir.put(to.name, n)
		return rename(old, path, 0), op, true
	}
}

// target draws the second entry for a kind.
func (g *Generator) target(kind Kind, from place) (place, bool) {
	switch kind {
	case Rename:
		to := place{from.dir, g.nameOf(g.rand.IntN(g.opts.Names))}
		return to, to.node() == nil
	case RenameOver:
		return g.taken(func(n *node) bool { return n.kind != directory })
	case RenameDirOver:
		return g.taken(func(n *node) bool { return n.kind == directory && !n.static && len(n.kids) == 0 })
	case Exchange:
		return g.taken(func(n *node) bool { return !n.static })
	case RenameTo:
		to, ok := g.free(false)
		return to, ok && to.dir != from.dir
	default:
		return g.free(false)
	}
}

// fits reports whether a directory can be moved into another: not into itself, and not
// too deep.
func (g *Generator) fits(n, into *node) bool {
	return !into.inside(n) && into.depth()+n.height() <= g.opts.MaxDepth
}
