//go:build linux

package portable

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/heraldfs/heraldfs/internal/opgen"
)

// names is what a stream of events leads to.
type names map[string]bool

func (n names) below(path string) []string {
	var list []string
	for name := range n {
		if path != "" && (name == path || strings.HasPrefix(name, path+"/")) {
			list = append(list, name)
		}
	}
	return list
}

// apply returns what cannot be.
func (n names) apply(ev Event) error {
	switch ev.Kind {
	case Create:
		if n[ev.Path] {
			return fmt.Errorf("created twice: %s", ev.Path)
		}
		n[ev.Path] = true
	case Delete:
		if !n[ev.Path] {
			return fmt.Errorf("deleted, but not there: %s", ev.Path)
		}
		for _, name := range n.below(ev.Path) {
			delete(n, name)
		}
	case Rename:
		if ev.OldPath != "" && !n[ev.OldPath] {
			return fmt.Errorf("renamed, but not there: %s", ev.OldPath)
		}
		moved := n.below(ev.OldPath)
		for _, name := range append(n.below(ev.Path), moved...) {
			delete(n, name)
		}
		if ev.Path == "" {
			return nil
		}
		n[ev.Path] = true
		for _, name := range moved {
			n[ev.Path+strings.TrimPrefix(name, ev.OldPath)] = true
		}
	case Exchange:
		a, b := n.below(ev.OldPath), n.below(ev.Path)
		for _, name := range append(slices.Clone(a), b...) {
			delete(n, name)
		}
		for _, name := range a {
			n[ev.Path+strings.TrimPrefix(name, ev.OldPath)] = true
		}
		for _, name := range b {
			n[ev.OldPath+strings.TrimPrefix(name, ev.Path)] = true
		}
	case Modify, Attrib:
		if ev.Path != "." && !n[ev.Path] {
			return fmt.Errorf("%v of what is not there: %s", ev.Kind, ev.Path)
		}
	}
	return nil
}

func onDisk(t *testing.T, dir string) names {
	t.Helper()
	n := make(names)
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != dir {
			n[strings.TrimPrefix(path, dir+"/")] = true
		}
		return err
	}))
	return n
}

// TestRandom makes random operations at full speed: whatever is told on the way, it leads from each look at
// the disk to the next.
func TestRandom(t *testing.T) {
	for _, v := range variants {
		for seed := range uint64(4) {
			t.Run(fmt.Sprintf("%s/%d", v.name, seed), func(t *testing.T) {
				base := t.TempDir()
				for _, d := range []string{"tree", "out"} {
					must(t, os.Mkdir(filepath.Join(base, d), 0o755))
				}
				dir := filepath.Join(base, "tree")
				g, err := opgen.New(opgen.Options{Root: dir, Outside: filepath.Join(base, "out"), Seed: seed, Static: []string{"a/b", "c"}})
				must(t, err)
				told := onDisk(t, dir)
				b := newBed(t, base, Options{}, v.set)
				var all []Event
				for round := range 8 {
					ops, err := g.Run(t.Context(), 60, nil)
					must(t, err)
					evs := b.fence()
					all = append(all, evs...)
					for _, ev := range evs {
						if err := told.apply(ev); err != nil {
							t.Errorf("round %d: %v", round, err)
						}
					}
					if disk := onDisk(t, dir); !maps.Equal(told, disk) || t.Failed() {
						for name := range disk {
							if !told[name] {
								t.Errorf("not told: %s", name)
							}
						}
						for name := range told {
							if !disk[name] {
								t.Errorf("told, but not there: %s", name)
							}
						}
						t.Fatalf("round %d:\n%v\n%s", round, ops, strings.Join(lines(all), "\n"))
					}
				}
			})
		}
	}
}
