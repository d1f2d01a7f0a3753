package opgen

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Options says where and how to work. Root alone is enough. Files are made with mode
// 0644 and directories with 0755, and Tree expects that the umask takes nothing of these.
type Options struct {
	// Root is an existing empty directory.
	Root string
	// Outside is an existing empty directory on the same file system that is not below
	// Root; empty: nothing moves in or out.
	Outside string
	// Seed chooses the operations.
	Seed uint64
	// Static are directories below Root, made by New with their parents, and
	// Root itself is always one of them.
	Static []string
	// Names is the number of names in a directory; 0 is 8. Few names make for many
	// collisions.
	Names int
	// MaxDepth bounds directories below a static one; 0 is 4.
	MaxDepth int
	// Pace is the time from the start of one operation to that of the next; 0 is full speed.
	Pace time.Duration
	// Kinds are the operations to choose from; none means all.
	Kinds []Kind
}

// Generator performs operations. It is for one goroutine.
type Generator struct {
	opts    Options
	rand    *rand.Rand
	kinds   []Kind // each as often as it is likely
	root    *node
	static  []*node
	outside []*node
	count   int // operations performed
	made    int // nodes and contents made, which tell them apart
}

// node is a file, directory or symlink of the model.
type node struct {
	id     int
	kind   nodeKind
	static bool
	mode   os.FileMode
	data   []byte
	target string // of a symlink
	nlink  int
	// The rest is for directories.
	name string // in up
	up   *node
	kids map[string]*node
}

type nodeKind int

const (
	file nodeKind = iota
	directory
	symlink
)

// New makes the static directories, and gives them and Root mode 0755.
func New(opts Options) (*Generator, error) {
	if opts.Names <= 0 {
		opts.Names = 8
	}
	if opts.MaxDepth <= 0 {
		opts.MaxDepth = 4
	}
	g := &Generator{opts: opts, rand: rand.New(rand.NewPCG(opts.Seed, 0x68657261)), kinds: weigh(opts)}
	if len(g.kinds) == 0 {
		return nil, errors.New("opgen: no operation to choose from")
	}
	g.root = g.newNode(directory, 0o755)
	g.root.static = true
	g.static = append(g.static, g.root)
	if err := os.Chmod(opts.Root, 0o755); err != nil {
		return nil, fmt.Errorf("opgen: %w", err)
	}
	for _, path := range opts.Static {
		if err := g.addStatic(path); err != nil {
			return nil, fmt.Errorf("opgen: static directory %s: %w", path, err)
		}
	}
	return g, nil
}

func (g *Generator) addStatic(path string) error {
	if !filepath.IsLocal(path) {
		return errors.New("not below the root")
	}
	at := g.root
	for name := range strings.SplitSeq(filepath.Clean(path), string(filepath.Separator)) {
		if name == "." {
			continue
		}
		next := at.kids[name]
		if next == nil {
			next = g.newNode(directory, 0o755)
			next.static = true
			at.put(name, next)
			dir := g.abs(next.rel())
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			// Whatever the umask.
			if err := os.Chmod(dir, 0o755); err != nil {
				return err
			}
			g.static = append(g.static, next)
		}
		at = next
	}
	return nil
}

// Static returns the static directories' paths relative to Root, Root as ".", in order.
func (g *Generator) Static() []string {
	paths := make([]string, len(g.static))
	for i, d := range g.static {
		paths[i] = d.rel()
	}
	return paths
}

// Run performs n operations and returns them. after, if given, is called after each,
// and its error ends the run. The operations performed are returned with any error.
// At full speed and without after, all are chosen first, so that nothing but system
// calls stands between them.
func (g *Generator) Run(ctx context.Context, n int, after func(Op) error) ([]Op, error) {
	if g.opts.Pace <= 0 && after == nil {
		return g.burst(ctx, n)
	}
	var pace <-chan time.Time
	if g.opts.Pace > 0 {
		ticker := time.NewTicker(g.opts.Pace)
		defer ticker.Stop()
		pace = ticker.C
	}
	ops := make([]Op, 0, n)
	for len(ops) < n {
		if err := ctx.Err(); err != nil {
			return ops, err
		}
		op, err := g.Step()
		if err != nil {
			return ops, err
		}
		ops = append(ops, op)
		if after != nil {
			if err := after(op); err != nil {
				return ops, fmt.Errorf("after %v: %w", op, err)
			}
		}
		if pace != nil {
			select {
			case <-pace:
			case <-ctx.Done():
			}
		}
	}
	return ops, nil
}

func (g *Generator) burst(ctx context.Context, n int) ([]Op, error) {
	ops, acts := make([]Op, n), make([]func() error, n)
	for i := range ops {
		var err error
		if ops[i], acts[i], err = g.plan(); err != nil {
			return nil, err
		}
	}
	for i, act := range acts {
		if err := ctx.Err(); err != nil {
			return ops[:i], err
		}
		if err := act(); err != nil {
			return ops[:i], g.failed(ops[i], err)
		}
	}
	return ops, nil
}

// Step performs one operation.
func (g *Generator) Step() (Op, error) {
	op, act, err := g.plan()
	if err != nil {
		return op, err
	}
	if err := act(); err != nil {
		return op, g.failed(op, err)
	}
	return op, nil
}

func (g *Generator) failed(op Op, err error) error {
	return fmt.Errorf("opgen: seed %d: %v: %w", g.opts.Seed, op, err)
}

// maxTries bounds the search for a possible operation. Of all kinds, one is possible
// in a few tries; of a few kinds, perhaps none ever.
const maxTries = 10000

// plan chooses an operation, and has the model as it will be after it.
func (g *Generator) plan() (Op, func() error, error) {
	for range maxTries {
		kind := g.kinds[g.rand.IntN(len(g.kinds))]
		act, op, ok := g.choose(kind)
		if ok {
			g.count++
			op.N, op.Kind = g.count, kind
			return op, act, nil
		}
	}
	return Op{}, nil, fmt.Errorf("opgen: seed %d: no operation was possible", g.opts.Seed)
}

func (g *Generator) newNode(kind nodeKind, mode os.FileMode) *node {
	g.made++
	n := &node{id: g.made, kind: kind, mode: mode}
	if kind == directory {
		n.kids = map[string]*node{}
	}
	return n
}

// content makes bytes that no other content has at the same place.
func (g *Generator) content(size int) []byte {
	g.made++
	line := fmt.Appendf(nil, "%d:%d\n", g.opts.Seed, g.made)
	return slices.Repeat(line, size/len(line)+1)[:size]
}

func (n *node) put(name string, kid *node) {
	n.kids[name] = kid
	kid.nlink++
	if kid.kind == directory {
		kid.name, kid.up = name, n
	}
}

func (n *node) take(name string) *node {
	kid := n.kids[name]
	delete(n.kids, name)
	kid.nlink--
	return kid
}

// rel is a directory's path relative to Root.
func (n *node) rel() string {
	if n.up == nil {
		return "."
	}
	return filepath.Join(n.up.rel(), n.name)
}

func (n *node) depth() int {
	d := 0
	for ; !n.static; n = n.up {
		d++
	}
	return d
}

// height is the number of directories on the longest way down, n included.
func (n *node) height() int {
	h := 0
	for _, kid := range n.kids {
		if kid.kind == directory {
			h = max(h, kid.height())
		}
	}
	return h + 1
}

func (n *node) inside(dir *node) bool {
	for ; n != nil; n = n.up {
		if n == dir {
			return true
		}
	}
	return false
}

// names lists the entries of a directory in order: the order of a map is random.
func (n *node) names() []string {
	names := make([]string, 0, len(n.kids))
	for name := range n.kids {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (g *Generator) abs(rel string) string { return filepath.Join(g.opts.Root, rel) }
