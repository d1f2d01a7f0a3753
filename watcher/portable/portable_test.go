//go:build linux

package portable

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/watcher/internal/script"
)

const deadline = 30 * time.Second

// bed is a Watcher on base/tree, with base/out beside it.
type bed struct {
	t    *testing.T
	w    *Watcher
	base string

	mu     sync.Mutex
	events []Event
	ended  chan error
}

// variants are how fsnotify behaves on Linux, and as if it knew of no old names, as with kqueue.
var variants = []struct {
	name string
	set  func(*Watcher)
}{
	{"names", func(*Watcher) {}},
	{"identities", func(w *Watcher) { w.e.sys.olds, w.forgetful = false, true }},
}

func newBed(t *testing.T, base string, o Options, set func(*Watcher)) *bed {
	t.Helper()
	b := &bed{t: t, base: base, ended: make(chan error, 1)}
	for _, d := range []string{"tree", "out"} {
		must(t, os.MkdirAll(filepath.Join(base, d), 0o755))
	}
	o.Roots = []Root{{Dir: filepath.Join(base, "tree")}}
	w, err := Open(o)
	must(t, err)
	set(w)
	b.w = w
	ready := make(chan struct{})
	go func() {
		b.ended <- w.Run(context.Background(), func(evs []Event) {
			b.mu.Lock()
			defer b.mu.Unlock()
			for _, ev := range evs {
				if ev.Kind == Ready {
					close(ready)
					continue
				}
				b.events = append(b.events, ev)
			}
		})
	}()
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(w.e.fenceDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the private directory is left: %v", err)
		}
	})
	select {
	case <-ready:
	case err := <-b.ended:
		t.Fatal(err)
	case <-time.After(deadline):
		t.Fatal("not ready")
	}
	return b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bed) path(rel string) string {
	if rel == "out" || strings.HasPrefix(rel, "out/") {
		return filepath.Join(b.base, rel)
	}
	return filepath.Join(b.base, "tree", rel)
}

// fence returns what has come since the last one.
func (b *bed) fence() []Event {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	must(b.t, b.w.Barrier(ctx))
	b.mu.Lock()
	defer b.mu.Unlock()
	got := b.events
	b.events = nil
	return got
}

func lines(events []Event) []string {
	var out []string
	for _, ev := range events {
		op := ev.Kind.String()
		if ev.IsDir {
			op += ",dir"
		}
		side := func(s string) string {
			if s == "" {
				return "?"
			}
			return s
		}
		switch ev.Kind {
		case Rename:
			op += " " + side(ev.OldPath) + " -> " + side(ev.Path)
		case Exchange:
			op = "exchange " + ev.OldPath + " <-> " + ev.Path
		default:
			op += " " + ev.Path
		}
		out = append(out, op)
	}
	return out
}

// want is what this backend tells where the others tell what a script says.
func want(lines []string) []string {
	var out []string
	for _, line := range lines {
		if strings.HasPrefix(line, "close_write") {
			continue
		}
		line = strings.Replace(line, "rename,dir ? -> ", "create,dir ", 1)
		out = append(out, strings.Replace(line, "rename ? -> ", "create ", 1))
	}
	return out
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("%s:\n got %q\nwant %q", what, got, want)
	}
}

// TestScripts runs the scripts of all backends.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("../testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, v := range variants {
		for _, file := range files {
			t.Run(v.name+"/"+strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
				b := newBed(t, t.TempDir(), Options{}, v.set)
				steps, err := script.Read(file, false)
				must(t, err)
				for _, s := range steps {
					if strings.HasPrefix(s.Do, "exchange") && v.name == "identities" {
						s.Want = nil // seen as two files that are where they were told to be
					}
					must(t, script.Perform(s.Do, b.path))
					got := lines(b.fence())
					if s.Want == nil && len(got) > 0 && strings.HasPrefix(s.Do, "exchange") {
						continue
					}
					equal(t, s.Do, got, want(s.Want))
				}
			})
		}
	}
}

// TestOverflow fills the kernel's queue while nobody reads it.
func TestOverflow(t *testing.T) {
	const limit = "/proc/sys/fs/inotify/max_queued_events"
	old, err := os.ReadFile(limit)
	must(t, err)
	testenv.Need(t, testenv.Root)
	must(t, os.WriteFile(limit, []byte("16"), 0))
	t.Cleanup(func() { must(t, os.WriteFile(limit, old, 0)) })
	base := t.TempDir()
	p := func(rel string) string { return filepath.Join(base, "tree", rel) }
	for _, d := range []string{"old/sub", "x", "y", "gone/deep"} {
		must(t, os.MkdirAll(p(d), 0o755))
	}
	for _, f := range []string{"x/id", "changed", "same", "victim", "mover"} {
		must(t, os.WriteFile(p(f), []byte("text"), 0o600))
	}
	b := newBed(t, base, Options{}, func(*Watcher) {})
	b.fence()
	b.w.mu.Lock() // the goroutine that reads waits for it
	for i := range 200 {
		must(t, os.WriteFile(p("churn"), nil, 0o600))
		must(t, os.Rename(p("churn"), p(fmt.Sprintf("churn%d", i))))
		must(t, os.Remove(p(fmt.Sprintf("churn%d", i))))
	}
	must(t, os.Rename(p("old"), p("new")))
	must(t, os.Mkdir(p("old"), 0o755))
	must(t, os.Rename(p("x"), p("tmp")))
	must(t, os.Rename(p("y"), p("x")))
	must(t, os.Rename(p("tmp"), p("y")))
	must(t, os.WriteFile(p("changed"), []byte("longer text"), 0o600))
	must(t, os.Rename(p("mover"), p("victim")))
	must(t, os.RemoveAll(p("gone")))
	must(t, os.MkdirAll(p("come/deep"), 0o755))
	b.w.mu.Unlock()
	got := lines(b.fence())
	from, to := -1, -1
	for i, line := range got {
		switch line {
		case "overflow,dir .":
			if from < 0 {
				from = i
			}
		case "rescan,dir .":
			to = i
		}
	}
	if from < 0 || to < from {
		t.Fatalf("no overflow and rescan: %q", got)
	}
	all := strings.Join(got[from:to], "\n") + "\n"
	for _, line := range []string{"rename,dir old -> new", "create,dir old", "modify changed", "rename mover -> victim",
		"delete,dir gone/deep\ndelete,dir gone", "create,dir come", "create,dir come/deep"} {
		if !strings.Contains(all, line+"\n") {
			t.Errorf("no %q in\n%s", line, all)
		}
	}
	for _, line := range []string{"same", "delete victim", "sub"} {
		if strings.Contains(all, line+"\n") {
			t.Errorf("%q in\n%s", line, all)
		}
	}
	// Everything has its new path afterwards.
	for _, f := range []string{"new/sub/f", "old/f", "x/f", "y/f", "come/deep/f"} {
		must(t, os.WriteFile(p(f), nil, 0o600))
		equal(t, f, lines(b.fence()), []string{"create " + f})
	}
}

// TestIgnored: what is left out is neither watched nor told.
func TestIgnored(t *testing.T) {
	base := t.TempDir()
	p := func(rel string) string { return filepath.Join(base, "tree", rel) }
	put := func(rel, text string) {
		t.Helper()
		must(t, os.WriteFile(p(rel), []byte(text), 0o600))
	}
	for _, d := range []string{"src", "build/deep", "src/gen/deep", "sub/keep"} {
		must(t, os.MkdirAll(p(d), 0o755))
	}
	put("src/.heraldignore", "gen/\n")
	b := newBed(t, base, Options{Ignore: []string{"/build", "*.tmp"}}, func(*Watcher) {})
	watched := func(rel string) bool {
		for _, path := range b.w.fs.WatchList() {
			if path == p(rel) {
				return true
			}
		}
		return false
	}
	for rel, is := range map[string]bool{"src": true, "build": false, "build/deep": false, "src/gen": false, "src/gen/deep": false, "sub/keep": true} {
		if watched(rel) != is {
			t.Errorf("%s is watched: %v", rel, !is)
		}
	}
	step := func(what string, want ...string) {
		t.Helper()
		equal(t, what, lines(b.fence()), want)
	}
	put("build/deep/f", "x")
	put("src/gen/f", "x")
	put("src/a.tmp", "x")
	step("changes that are left out")
	must(t, os.Rename(p("src/a.tmp"), p("src/a")))
	step("a name that is told", "create src/a")
	must(t, os.Rename(p("src/a"), p("src/b.tmp")))
	step("a name that is not", "rename src/a -> ?")
	must(t, os.Rename(p("sub"), p("src/gen2")))
	step("rename", "rename,dir sub -> src/gen2")
	must(t, os.Rename(p("src/gen2"), p("src/gen/2")))
	step("a directory goes where nothing is told", "rename,dir src/gen2 -> ?")
	if watched("src/gen/2/keep") || watched("src/gen2/keep") || watched("sub/keep") {
		t.Error("it is still watched")
	}
	// New patterns, and none.
	must(t, os.WriteFile(p("src/rules"), []byte("/only\n"), 0o600))
	b.fence()
	must(t, os.Rename(p("src/rules"), p("src/.heraldignore")))
	step("other patterns", "rename src/rules -> src/.heraldignore", "rescan,dir src")
	put("src/gen/2/keep/f", "")
	step("no longer left out", "create src/gen/2/keep/f")
	must(t, os.Mkdir(p("src/only"), 0o755))
	step("left out now")
	must(t, os.Remove(p("src/.heraldignore")))
	step("no patterns", "delete src/.heraldignore", "rescan,dir src")
	put("src/only/f", "")
	step("told again", "create src/only/f")
	put(".heraldignore", "")
	step("an empty one", "create .heraldignore", "rescan,dir .")
}

func TestOldName(t *testing.T) {
	b := newBed(t, t.TempDir(), Options{}, func(*Watcher) {})
	for _, name := range []string{`q"uote`, "\xff\xfe", "ar ← row", "new\nline"} {
		must(t, os.WriteFile(b.path("f"), nil, 0o600))
		b.fence()
		must(t, os.Rename(b.path("f"), b.path(name)))
		must(t, os.Rename(b.path(name), b.path(name+"2")))
		equal(t, name, lines(b.fence()), []string{"rename f -> " + name, "rename " + name + " -> " + name + "2"})
	}
}

func TestClose(t *testing.T) {
	w, err := Open(Options{Roots: []Root{{Dir: t.TempDir()}}})
	must(t, err)
	must(t, w.Close())
	must(t, w.Close())
	if err := w.Run(context.Background(), func([]Event) {}); err == nil {
		t.Error("Run after Close")
	}
	ctx, cancel := context.WithCancel(context.Background())
	if w, err = Open(Options{Roots: []Root{{Dir: t.TempDir()}}}); err != nil {
		t.Fatal(err)
	}
	err = w.Run(ctx, func([]Event) { cancel() })
	if err != nil {
		t.Error(err)
	}
	if err := w.Barrier(context.Background()); err == nil {
		t.Error("Barrier after Run")
	}
	must(t, w.Close())
}
