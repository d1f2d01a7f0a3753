//go:build linux

package tree

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heraldfs/heraldfs/watcher"
)

func TestIgnore(t *testing.T) {
	each(t, func(t *testing.T, o Options, dir string) {
		p := func(rel string) string { return filepath.Join(dir, rel) }
		put := func(rel, text string) {
			t.Helper()
			must(t, os.WriteFile(p(rel), []byte(text), 0o600))
		}
		for _, d := range []string{"src/gen/deep", "build/deep", "sub/keep"} {
			must(t, os.MkdirAll(p(d), 0o700))
		}
		put("src/.heraldignore", "gen/\n")
		o.Roots, o.Ignore = []string{dir}, []string{"/build", "*.tmp"}
		r := watch(t, o)
		// Contents and closes are not what this is about.
		step := func(what, want string) {
			t.Helper()
			got := lines(entriesOf(r.fence()))
			if got != told(o, want) {
				t.Errorf("%s: got\n%swant\n%s", what, got, told(o, want))
			}
		}
		put("build/deep/f", "x")
		must(t, os.Mkdir(p("build/new"), 0o700))
		put("build/new/f", "x")
		put("src/gen/deep/f", "x")
		put("src/a.tmp", "x")
		step("changes that are left out", "")
		put("src/gen2", "x")
		step("a name that is not", "create \"src/gen2\"\n")
		must(t, os.Rename(p("src/a.tmp"), p("src/a")))
		step("comes into view", "rename \"\" -> \"src/a\"\n")
		must(t, os.Rename(p("src/a"), p("src/b.tmp")))
		step("goes out of it", "rename \"src/a\" -> \"\"\n")
		must(t, os.Rename(p("sub"), p("build/sub")))
		step("a directory too", "rename \"sub\" -> \"\" dir\n")
		put("build/sub/keep/f", "x")
		step("and what is in it", "")
		must(t, os.Rename(p("build/sub"), p("back")))
		step("and back", "rename \"\" -> \"back\" dir\ncreate \"back/keep\" dir\ncreate \"back/keep/f\"\n")
		put("back/keep/g", "x")
		step("below it", "create \"back/keep/g\"\n")

		put("rules", "/only\n")
		r.fence()
		must(t, os.Rename(p("rules"), p("src/.heraldignore")))
		step("other patterns", "rename \"rules\" -> \"src/.heraldignore\"\nrescan \"src\" dir\n")
		put("src/gen/deep/g", "x")
		must(t, os.Mkdir(p("src/only"), 0o700))
		put("src/only/f", "x")
		step("of new patterns", "create \"src/gen/deep/g\"\n")
		must(t, os.Remove(p("src/.heraldignore")))
		step("no patterns", "delete \"src/.heraldignore\"\nrescan \"src\" dir\n")
		put("src/only/g", "x")
		step("all is told", "create \"src/only/g\"\n")
		must(t, os.Mkdir(p("back/keep/cache"), 0o700))
		r.fence()
		put(".heraldignore", "cache\n")
		got := lines(entriesOf(r.fence()))
		if !strings.HasPrefix(got, "create \".heraldignore\"\n") || !strings.HasSuffix(got, "rescan \".\" dir\n") {
			t.Errorf("patterns for all: got\n%s", got)
		}
		put("back/keep/cache/g", "x")
		must(t, os.Rename(p("back/keep/cache"), p("back/keep/x")))
		step("of what was told before", "rename \"\" -> \"back/keep/x\" dir\ncreate \"back/keep/x/g\"\n")
	})
}

// TestIgnoredUnmarked counts the watches.
func TestIgnoredUnmarked(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"node_modules/a/b", "src/node_modules/c", "src/d"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o700))
	}
	for _, b := range []struct {
		o    Options
		want int
	}{
		{Options{Backend: watcher.Inotify}, 3},
		{Options{Backend: watcher.Fanotify, ForceInodeMarks: true}, 3},
	} {
		o := b.o
		o.Roots, o.Ignore = []string{dir}, []string{"node_modules/"}
		r := watch(t, o)
		g := r.tree.groups[0]
		count := func() (n int) {
			g.mu.Lock()
			defer g.mu.Unlock()
			for _, d := range g.e.tab.nodes {
				if d.marked {
					n++
				}
			}
			return n
		}
		if n := count(); n != b.want {
			t.Errorf("%s: %d directories are watched, want %d", o.Backend, n, b.want)
		}
		must(t, os.WriteFile(filepath.Join(dir, ".heraldignore"), []byte("d\n"), 0o600))
		r.fence()
		if n := count(); n != b.want-1 {
			t.Errorf("%s: %d directories are watched with more left out, want %d", o.Backend, n, b.want-1)
		}
		must(t, os.Remove(filepath.Join(dir, ".heraldignore")))
		r.fence()
		if n := count(); n != b.want {
			t.Errorf("%s: %d directories are watched in the end, want %d", o.Backend, n, b.want)
		}
	}
}

func TestNoIgnoreFiles(t *testing.T) {
	each(t, func(t *testing.T, o Options, dir string) {
		must(t, os.WriteFile(filepath.Join(dir, ".heraldignore"), []byte("*\n"), 0o600))
		o.Roots, o.NoIgnoreFiles = []string{dir}, true
		r := watch(t, o)
		must(t, os.Mkdir(filepath.Join(dir, "a"), 0o700))
		wantLines(t, r.fence(), "create \"a\" dir\n")
	})
}
