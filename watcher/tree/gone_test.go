//go:build linux

package tree

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMovedOut moves directories out of the tree in a burst, with files made in them and below them right before and
// right after: what was made after is outside, and nobody's business. Half of them come back under another name.
func TestMovedOut(t *testing.T) {
	eachOf(t, kernelBackends, func(t *testing.T, o Options, dir string) {
		in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
		must(t, os.Mkdir(out, 0o700))
		const dirs = 300
		for i := range dirs {
			must(t, os.MkdirAll(filepath.Join(in, fmt.Sprintf("p%d/d%d/deep/er", i%7, i)), 0o700))
		}
		o.Roots = []string{in}
		r := watch(t, o)
		want := map[string]bool{}
		file := func(dir, name string) {
			write(t, filepath.Join(dir, name))
			if rel, err := filepath.Rel(in, filepath.Join(dir, name)); err == nil && filepath.IsLocal(rel) {
				want[rel] = true
			}
		}
		secrets := 0
		for i := range dirs {
			d, away := filepath.Join(in, fmt.Sprintf("p%d/d%d", i%7, i)), filepath.Join(out, fmt.Sprint(i))
			file(d, "before")
			must(t, os.Rename(d, away))
			for _, below := range []string{"", "deep", "deep/er"} {
				file(filepath.Join(away, below), "secret")
				must(t, os.Rename(filepath.Join(away, below, "secret"), filepath.Join(away, below, "secret2")))
				secrets += 2
			}
			// Elsewhere nothing is held up, and nothing is lost.
			file(in, fmt.Sprint("beside", i))
			if i%2 == 0 {
				back := filepath.Join(in, fmt.Sprintf("p%d/back%d", (i+1)%7, i))
				must(t, os.Rename(away, back))
				file(filepath.Join(back, "deep"), "after")
			}
		}
		told := 0
		for _, rec := range r.fence() {
			if strings.Contains(rec.Path, "secret") && !strings.Contains(rec.Path, "/back") {
				told++
				if told <= 5 {
					t.Errorf("told of what is outside: %v", rec)
				}
			}
			if rec.Type == TypeCreate {
				delete(want, rec.Path)
			}
		}
		if told > 0 {
			t.Errorf("%d records of %d changes outside", told, secrets)
		}
		for path := range want {
			t.Errorf("not told: %s", path)
		}
	})
}
