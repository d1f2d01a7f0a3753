package replay

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heraldfs/heraldfs/notify"
)

// The host is ahead: it has removed the file by the time that its events are told. In the guest it lives on
// until the last of its names is told to be gone.
func TestHostIsAhead(t *testing.T) {
	prepare := func(b *bed) notify.Object {
		b.write("f", "x")
		b.watch(".", "f")
		o := b.obj("f")
		b.must(os.Remove(b.path("f")))
		return o
	}
	links := func(o notify.Object) notify.Event { return notify.Event{Op: notify.OpLinkCount, Object: o} }

	t.Run("link in a known directory", func(t *testing.T) {
		b := newBed(t, nil)
		o := prepare(b)
		b.push(links(o), b.ev(notify.OpCreate, ".", "l", o))
		b.expect(`f ATTRIB ""`, `. CREATE "l"`)
		b.push(b.ev(notify.OpModify, ".", "l", o))
		b.expect(`. MODIFY "l"`, `f MODIFY ""`)
		b.push(links(o), b.ev(notify.OpDelete, ".", "f", o), links(o), b.ev(notify.OpDelete, ".", "l", o))
		b.expect(`f ATTRIB ""`, `. DELETE "f"`, `f ATTRIB ""`, `f DELETE_SELF ""`, `f IGNORED ""`, `. DELETE "l"`)
	})
	t.Run("link in another directory", func(t *testing.T) {
		b := newBed(t, nil)
		o := prepare(b)
		b.push(links(o))
		b.expect(`f ATTRIB ""`)
		b.push(links(o), b.ev(notify.OpDelete, ".", "f", o))
		b.expect(`f ATTRIB ""`, `f DELETE_SELF ""`, `f IGNORED ""`, `. DELETE "f"`)
	})
}

// The source is behind: what a comparison finds on the host is told by events that are not read yet.
func TestSourceIsBehind(t *testing.T) {
	b := newBed(t, nil)
	b.write("b", "x")
	o := b.obj("b")
	b.watch(".")
	create := b.ev(notify.OpCreate, ".", "a", o)
	create.Verify = true
	b.src.behind.Store(&[]notify.Event{b.move(".", "a", ".", "b", o)})
	b.src.batches <- []notify.Event{create}
	<-b.src.emitted
	var got []string
	for _, rec := range b.guest.WaitFor("b") {
		got = append(got, rec.String())
	}
	if d := cmp.Diff([]string{`. CREATE "a"`, `. MOVED_FROM "a" cookie 1`}, got); d != "" {
		t.Errorf("before the MOVED_TO the guest's watchers heard (-want +got):\n%s", d)
	}
}

// TestMoveIntoRemoved: a directory that the guest takes for removed gets something, or gives it away. What
// happens at the other end is told all the same.
func TestMoveIntoRemoved(t *testing.T) {
	b := newBed(t, func(host string) {
		for _, dir := range []string{"a/gone", "a/one", "a/two"} {
			if err := os.MkdirAll(filepath.Join(host, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	})
	held, err := os.Open(filepath.Join(b.mnt, "a/gone"))
	b.must(err)
	defer held.Close()
	b.look("a/one")
	b.watch("a")
	gone, one, two := b.obj("a/gone"), b.obj("a/one"), b.obj("a/two")
	b.must(os.Rename(b.path("a/gone"), filepath.Join(t.TempDir(), "gone")))
	b.push(isDir(b.ev(notify.OpDelete, "a", "gone", gone)))
	b.expect(`a DELETE,ISDIR "gone"`)
	into := isDir(b.move("a", "one", "a", "one", one))
	into.NewDir = gone
	from := isDir(b.move("a", "two", "a", "three", two))
	from.Dir = gone
	b.push(into, from)
	b.expect(`a MOVED_FROM,ISDIR "one" cookie 1`, `a MOVED_TO,ISDIR "three" cookie 2`)
}
