//go:build linux

package watcher_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher"
	"github.com/heraldfs/heraldfs/watcher/internal/script"
)

const (
	fencePrefix = ".fence-"
	patience    = 20 * time.Second
)

// bed is a watcher on base/tree, with base/out beside it, and all that is needed to
// say of its events which paths they are about.
type bed struct {
	t      *testing.T
	w      *watcher.Watcher
	base   string
	events chan []notify.Event
	dirs   map[notify.Object]string // marked or, with filesystem marks, known
	files  map[notify.Object]string
	fences int
	close  func()
}

func newBed(t *testing.T, base string, o watcher.Options) *bed {
	t.Helper()
	for _, d := range []string{"tree", "out"} {
		if err := os.MkdirAll(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	o.Root = filepath.Join(base, "tree")
	w, err := watcher.Open(o)
	if err != nil {
		t.Fatalf("open %s watcher: %v", o.Backend, err)
	}
	b := &bed{t: t, w: w, base: base, events: make(chan []notify.Event, 1<<16),
		dirs: make(map[notify.Object]string), files: make(map[notify.Object]string)}
	ended := make(chan error, 1)
	go func() {
		ended <- w.Run(context.Background(), func(evs []notify.Event) {
			b.events <- append([]notify.Event(nil), evs...)
		})
	}()
	closed := false
	b.close = func() {
		if closed {
			return
		}
		closed = true
		if err := w.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(b.close)
	b.mark(".")
	return b
}

func (b *bed) path(rel string) string {
	if rel == "out" || strings.HasPrefix(rel, "out/") {
		return filepath.Join(b.base, rel)
	}
	return filepath.Join(b.base, "tree", rel)
}

func (b *bed) mark(rel string) notify.Object {
	b.t.Helper()
	fd, err := unix.Open(b.path(rel), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		b.t.Fatalf("open %s: %v", rel, err)
	}
	defer unix.Close(fd)
	o, _, err := sys.ObjectOf(fd)
	if err != nil {
		b.t.Fatal(err)
	}
	b.dirs[o] = rel
	if b.w.Marker != nil {
		if err := b.w.Marker.Mark(o, fd); err != nil {
			b.t.Fatalf("mark %s: %v", rel, err)
		}
	}
	return o
}

// fence makes a file in every known directory (which also proves a lone half of a
// rename single) and collects what comes before the last of them.
func (b *bed) fence() []notify.Event {
	b.t.Helper()
	b.fences++
	name := fencePrefix + strconv.Itoa(b.fences)
	var made []string
	for _, rel := range b.dirs {
		if rel != "." {
			made = append(made, b.path(rel)+"/"+name)
		}
	}
	made = append(made, b.path(name))
	for _, p := range made {
		if err := unix.Mknod(p, unix.S_IFREG|0o600, 0); err != nil {
			b.t.Fatalf("fence %s: %v", p, err)
		}
	}
	var got []notify.Event
	deadline := time.After(patience)
	for done := false; !done; {
		select {
		case batch := <-b.events:
			for _, ev := range batch {
				if b.dirs[ev.Dir] == "." && ev.Name == name && ev.Op == notify.OpCreate {
					done = true
				}
				got = append(got, ev)
			}
		case <-deadline:
			b.t.Fatalf("fence %s was not heard of within %v; got %v", name, patience, got)
		}
	}
	for _, p := range made {
		if err := unix.Unlink(p); err != nil {
			b.t.Fatal(err)
		}
	}
	return got
}

// tell renders those events that are about the tree, without fences.
func (b *bed) tell(evs []notify.Event) []string {
	var out []string
	for _, ev := range evs {
		if strings.HasPrefix(ev.Name, fencePrefix) {
			continue
		}
		op := ev.Op.String()
		if ev.IsDir && ev.Op != notify.OpDeleteSelf {
			op += ",dir"
		}
		from, fromOK := b.entry(ev.Dir, ev.Name)
		to, toOK := b.entry(ev.NewDir, ev.NewName)
		switch ev.Op {
		case notify.OpRename, notify.OpExchange:
			if !fromOK && !toOK {
				continue
			}
			arrow := " -> "
			if ev.Op == notify.OpExchange {
				op, arrow = "exchange", " <-> "
			}
			out = append(out, op+" "+from+arrow+to)
			b.learnMove(ev, from, to)
		case notify.OpLinkCount, notify.OpDeleteSelf:
			if p, ok := b.files[ev.Object]; ok {
				out = append(out, op+" "+p)
			} else if p, ok := b.dirs[ev.Object]; ok {
				out = append(out, op+" "+p)
			}
		case notify.OpOverflow:
			out = append(out, op)
		default:
			if !fromOK {
				continue
			}
			out = append(out, op+" "+from)
			if _, known := b.files[ev.Object]; !known && !ev.Object.IsZero() && !ev.IsDir {
				b.files[ev.Object] = from
			}
		}
	}
	return out
}

// learnMove follows an object for the later events that name nothing else.
func (b *bed) learnMove(ev notify.Event, from, to string) {
	if ev.IsDir || ev.Op == notify.OpExchange {
		return
	}
	for o, p := range b.files {
		// The victim keeps its name: its own last events come next.
		if p == from && o == ev.Object {
			b.files[o] = to
		}
	}
}

func (b *bed) entry(dir notify.Object, name string) (string, bool) {
	d, ok := b.dirs[dir]
	if !ok {
		return "?", false
	}
	return filepath.Join(d, name), true
}

// do performs one line of a script.
func (b *bed) do(line string) {
	b.t.Helper()
	if err := script.Perform(line, b.path); err != nil {
		b.t.Fatalf("%q: %v", line, err)
	}
	f := strings.Fields(line)
	switch f[0] {
	case "mkdir":
		b.mark(f[1])
	case "rmdir":
		// Keep the object's name for what is still to come, but out of the way of fences.
		b.forget(f[1])
	case "rename":
		b.moveDirs(f[1], f[2])
	case "exchange":
		b.moveDirs(f[2], f[1])
	}
}

func (b *bed) forget(rel string) {
	for o, p := range b.dirs {
		if p == rel {
			delete(b.dirs, o)
			b.files[o] = rel
			if b.w.Marker != nil {
				b.w.Marker.Unmark(o)
			}
		}
	}
}

// moveDirs gives directories their new names; those outside are no longer known.
func (b *bed) moveDirs(from, to string) {
	for o, p := range b.dirs {
		if p != from && !strings.HasPrefix(p, from+"/") {
			continue
		}
		if strings.HasPrefix(to, "out/") {
			delete(b.dirs, o)
			if b.w.Marker != nil {
				b.w.Marker.Unmark(o)
			}
			continue
		}
		b.dirs[o] = to + strings.TrimPrefix(p, from)
	}
}

func runScripts(t *testing.T, base string, o watcher.Options) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b := newBed(t, filepath.Join(base, strings.ReplaceAll(t.Name(), "/", "-")), o)
			steps, err := script.Read(file, b.w.Marker == nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range steps {
				b.do(s.Do)
				got := b.tell(b.fence())
				if strings.Join(got, "\n") != strings.Join(s.Want, "\n") {
					t.Fatalf("%s on %q:\n got %q\nwant %q", b.w.Backend, s.Do, got, s.Want)
				}
			}
		})
	}
}
