package replay

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/heraldfs/heraldfs/notify"
)

// TestHeld has files made, written and closed in one batch: in the guest they are opened once, by what makes
// them, and closed in their turn.
func TestHeld(t *testing.T) {
	const mask = notify.DefaultMask
	for _, objects := range []bool{true, false} {
		name := map[bool]string{true: "objects", false: "names"}[objects]
		t.Run(name, func(t *testing.T) {
			b := newBed(t, nil)
			b.r.mask = mask
			b.watch(".")
			b.write("f", "old")
			f := b.obj("f")
			story := []notify.Event{b.ev(notify.OpCreate, ".", "f", f), b.ev(notify.OpModify, ".", "f", f), b.ev(notify.OpCloseWrite, ".", "f", f)}
			if !objects {
				story = nameless(story)
			}
			host := b.snapshot()
			was := b.requests.n.Load()
			b.push(story...)
			if n := b.requests.n.Load() - was; n > 4 {
				t.Errorf("%d requests: more than GETATTR of the directory, LOOKUP, CREATE, SETATTR", n)
			}
			b.expect(`. CREATE "f"`, `. OPEN "f"`, `. MODIFY "f"`, `. CLOSE_WRITE "f"`)
			b.expectHost(host)
			if got, err := os.ReadFile(filepath.Join(b.mnt, "f")); err != nil || string(got) != "old" {
				t.Errorf("%q, %v", got, err)
			}
			b.heard()

			// Something else in between: the file is opened when it is closed.
			b.write("g", "g")
			g := b.obj("g")
			story = []notify.Event{b.ev(notify.OpCreate, ".", "g", g), b.ev(notify.OpModify, ".", "f", f), b.ev(notify.OpCloseWrite, ".", "g", g)}
			if !objects {
				story = nameless(story)
			}
			b.push(story...)
			b.expect(`. CREATE "g"`, `. MODIFY "f"`, `. OPEN "g"`, `. CLOSE_WRITE "g"`)

			// The guest has the name already.
			b.write("h", "h")
			b.look("h")
			h := b.obj("h")
			story = []notify.Event{b.ev(notify.OpCreate, ".", "h", h), b.ev(notify.OpCloseWrite, ".", "h", h)}
			if !objects {
				story = nameless(story)
			}
			b.push(story...)
			b.expect(`. CREATE "h"`, `. OPEN "h"`, `. CLOSE_WRITE "h"`)

			// It is gone again, by the time that it is told.
			b.write("i", "i")
			i := b.obj("i")
			story = []notify.Event{b.ev(notify.OpCreate, ".", "i", i), b.ev(notify.OpCloseWrite, ".", "i", i), b.ev(notify.OpDelete, ".", "i", i)}
			b.must(os.Remove(b.path("i")))
			if !objects {
				story = nameless(story)
			}
			b.push(story...)
			b.expect(`. CREATE "i"`, `. OPEN "i"`, `. CLOSE_WRITE "i"`, `. DELETE "i"`)
		})
	}
}

// TestHoldsOnlyItsOwn looks for the CLOSE_WRITE that ends the opening which made the file.
func TestHoldsOnlyItsOwn(t *testing.T) {
	r, _ := newScout(t)
	root, a := o("1"), o("7")
	at := func(op notify.Op, name string, obj notify.Object) notify.Event {
		return notify.Event{Op: op, Dir: root, Name: name, Object: obj}
	}
	for _, c := range []struct {
		what   string
		events []notify.Event
		want   int
	}{
		{"at once", []notify.Event{at(notify.OpCreate, "a", a), at(notify.OpCloseWrite, "a", a)}, 1},
		{"written", []notify.Event{at(notify.OpCreate, "a", a), at(notify.OpModify, "a", a), at(notify.OpAttrib, "a", a), at(notify.OpCloseWrite, "a", a)}, 3},
		{"never closed", []notify.Event{at(notify.OpCreate, "a", a), at(notify.OpModify, "a", a)}, 0},
		{"another object", []notify.Event{at(notify.OpCreate, "a", a), at(notify.OpCloseWrite, "a", o("8"))}, 0},
		{"another name", []notify.Event{at(notify.OpCreate, "a", a), at(notify.OpCloseWrite, "b", a)}, 0},
		{"removed", []notify.Event{at(notify.OpCreate, "a", a), at(notify.OpDelete, "a", a), at(notify.OpCloseWrite, "a", a)}, 0},
		{"a directory", []notify.Event{isDir(at(notify.OpCreate, "a", a)), at(notify.OpCloseWrite, "a", a)}, 0},
		{"no creation", []notify.Event{at(notify.OpModify, "a", a), at(notify.OpCloseWrite, "a", a)}, 0},
		{"an unknown directory", []notify.Event{{Op: notify.OpCreate, Dir: o("x"), Name: "a"}, {Op: notify.OpCloseWrite, Dir: o("x"), Name: "a"}}, 0},
	} {
		r.mask = notify.DefaultMask
		if r.hold(c.events, 0); r.held.at != c.want {
			t.Errorf("%s: closed by the event %d, must be %d", c.what, r.held.at, c.want)
		}
		for _, mask := range []notify.Mask{notify.DefaultMask | notify.Open, notify.DefaultMask &^ notify.CloseWrite} {
			r.mask = mask
			if r.hold(c.events, 0); r.held.at != 0 {
				t.Errorf("%s: held with the mask %v", c.what, mask)
			}
		}
	}
}

// TestKnownIsNotHeld links a file that the guest knows to where it hears of it, and removes it before
// that is told: a stand-in is made, but the end of the writing is that of the file.
func TestKnownIsNotHeld(t *testing.T) {
	b := newBed(t, nil)
	b.r.mask = notify.DefaultMask
	b.write("f", "old")
	b.must(os.Mkdir(b.path("u"), 0o755))
	b.watch(".", "f")
	f := b.obj("f")
	story := []notify.Event{b.move(".", "f", "u", "f", f), b.ev(notify.OpCreate, ".", "g", f),
		b.ev(notify.OpModify, ".", "g", f), b.ev(notify.OpCloseWrite, ".", "g", f)}
	b.must(os.Remove(b.path("f")))
	b.push(story...)
	heard := b.heard()
	for _, want := range []string{`. CREATE "g"`, `. CLOSE_WRITE "g"`, `f MODIFY ""`, `f CLOSE_WRITE ""`} {
		if !slices.Contains(heard, want) {
			t.Errorf("no %s in %q", want, heard)
		}
	}
}
