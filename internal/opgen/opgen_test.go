package opgen

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/heraldfs/heraldfs/internal/testenv"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { testenv.LeakMain(m) }

func newGenerator(t *testing.T, base string, opts Options) *Generator {
	t.Helper()
	for _, dir := range []*string{&opts.Root, &opts.Outside} {
		d, err := os.MkdirTemp(base, "")
		if err != nil {
			t.Fatal(err)
		}
		*dir = d
	}
	if opts.Static == nil {
		opts.Static = []string{"a", "b/c", "b"}
	}
	g, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// onDisk reads a tree back. Inode numbers become the numbers of first sight.
func onDisk(t *testing.T, root string) map[string]Entry {
	t.Helper()
	tree := map[string]Entry{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		e := Entry{Mode: info.Mode(), File: int(st.Ino), Nlink: int(st.Nlink)}
		switch {
		case d.IsDir():
			e.Nlink = 0
		case info.Mode()&os.ModeSymlink != 0:
			e.Target, err = os.Readlink(path)
		default:
			e.Content, err = os.ReadFile(path)
		}
		tree[strings.TrimPrefix(path, root+"/")] = e
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// sameFiles numbers files by the first of their paths, on both sides the same.
func sameFiles(tree map[string]Entry) map[string]Entry {
	var paths []string
	for path := range tree {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	seen, out := map[int]int{}, map[string]Entry{}
	for i, path := range paths {
		e := tree[path]
		if _, ok := seen[e.File]; !ok {
			seen[e.File] = i
		}
		e.File = seen[e.File]
		if len(e.Content) == 0 {
			e.Content = nil
		}
		out[path] = e
	}
	return out
}

func checkTree(t *testing.T, g *Generator) {
	t.Helper()
	model, disk := sameFiles(g.Tree()), sameFiles(onDisk(t, g.opts.Root))
	if !maps.EqualFunc(model, disk, func(a, b Entry) bool { return reflect.DeepEqual(a, b) }) {
		t.Fatalf("the tree is not the model's (-model +disk):\n%s", cmp.Diff(model, disk))
	}
}

// TestModel works on two file systems, and looks at the whole tree now and then.
func TestModel(t *testing.T) {
	for _, kind := range []struct {
		name string
		make func(testing.TB) string
	}{{"temporary directory", func(t testing.TB) string { return t.TempDir() }}, {"tmpfs", testenv.Tmpfs}} {
		t.Run(kind.name, func(t *testing.T) {
			seen := map[Kind]int{}
			for seed := range uint64(3) {
				g := newGenerator(t, kind.make(t), Options{Seed: seed})
				static := g.Static()
				for range 10 {
					ops, err := g.Run(t.Context(), 200, nil)
					if err != nil {
						t.Fatal(err)
					}
					for _, op := range ops {
						seen[op.Kind]++
					}
					checkTree(t, g)
				}
				for _, dir := range static {
					if e, ok := g.Lookup(dir); !ok || !e.Mode.IsDir() {
						t.Errorf("static directory %s: %v", dir, e)
					}
				}
			}
			for _, k := range Kinds() {
				if seen[k] == 0 {
					t.Errorf("%v never happened", k)
				}
			}
		})
	}
}

func TestDeterministic(t *testing.T) {
	run := func(seed uint64, one bool) []Op {
		g := newGenerator(t, t.TempDir(), Options{Seed: seed})
		var after func(Op) error
		if one {
			after = func(Op) error { return nil }
		}
		ops, err := g.Run(t.Context(), 1500, after)
		if err != nil {
			t.Fatal(err)
		}
		for i := range ops {
			ops[i].Path = strings.Replace(ops[i].Path, g.opts.Outside, "outside", 1)
			ops[i].To = strings.Replace(ops[i].To, g.opts.Outside, "outside", 1)
		}
		return ops
	}
	if d := cmp.Diff(run(7, false), run(7, true)); d != "" {
		t.Errorf("the same seed at another pace:\n%s", d)
	}
	if cmp.Equal(run(7, false), run(8, false)) {
		t.Error("another seed, the same operations")
	}
}

// TestOneByOne looks at the host after each operation.
func TestOneByOne(t *testing.T) {
	g := newGenerator(t, t.TempDir(), Options{Seed: 3, Names: 4, MaxDepth: 2})
	last := 0
	_, err := g.Run(t.Context(), 200, func(op Op) error {
		if op.N != last+1 {
			t.Errorf("%v follows number %d", op, last)
		}
		last = op.N
		checkTree(t, g)
		path := op.Path
		if op.To != "" {
			path = op.To
		}
		_, have := g.Lookup(path)
		gone := op.Kind == Unlink || op.Kind == Rmdir || op.Kind == RemoveAll || op.Kind == MoveOut
		if have == gone {
			t.Errorf("after %v: Lookup(%s) is %v", op, path, have)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRunEnds(t *testing.T) {
	g := newGenerator(t, t.TempDir(), Options{Seed: 1, Pace: time.Millisecond})
	stop := errors.New("stop")
	ops, err := g.Run(t.Context(), 100, func(op Op) error {
		if op.N == 5 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || len(ops) != 5 {
		t.Errorf("%d operations, %v; want 5 and the callback's error", len(ops), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ops, err = g.Run(ctx, 100, func(op Op) error {
		if op.N == 8 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || len(ops) != 3 {
		t.Errorf("%d operations, %v; want 3 and Canceled", len(ops), err)
	}
	begin := time.Now()
	if _, err := g.Run(t.Context(), 20, nil); err != nil || time.Since(begin) < 18*time.Millisecond {
		t.Errorf("20 operations at 1ms each took %v, %v", time.Since(begin), err)
	}
}

func TestKinds(t *testing.T) {
	g := newGenerator(t, t.TempDir(), Options{Kinds: []Kind{Create, Exchange}})
	ops, err := g.Run(t.Context(), 20, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range ops {
		if op.Kind != Create && op.Kind != Exchange {
			t.Errorf("%v was not asked for", op)
		}
	}
	if _, err := newGenerator(t, t.TempDir(), Options{Kinds: []Kind{Rmdir}}).Step(); err == nil {
		t.Error("removed a directory where none is")
	}
	for _, bad := range []Options{
		{Root: t.TempDir(), Kinds: []Kind{MoveOut}},
		{Root: t.TempDir(), Static: []string{"../x"}},
		{Root: filepath.Join(t.TempDir(), "missing")},
	} {
		if _, err := New(bad); err == nil {
			t.Errorf("New(%+v) is no error", bad)
		}
	}
}

// TestHostError has somebody else in the tree.
func TestHostError(t *testing.T) {
	for _, after := range []func(Op) error{nil, func(Op) error { return nil }} {
		g := newGenerator(t, t.TempDir(), Options{Kinds: []Kind{Create}, Seed: 9})
		if err := os.RemoveAll(g.opts.Root); err != nil {
			t.Fatal(err)
		}
		_, err := g.Run(t.Context(), 3, after)
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "seed 9: #1 create") {
			t.Errorf("a host without the tree: %v", err)
		}
	}
}
