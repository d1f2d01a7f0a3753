package replay

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/heraldfs/heraldfs/notify"
)

// emptyTree is a host directory with nothing in it.
type emptyTree struct{ numberTree }

func (emptyTree) Obtain(notify.Object, uint64, string, *fuse.EntryOut) fuse.Status {
	return fuse.ENOENT
}

func (emptyTree) NodeIDs(dst []uint64, obj notify.Object) []uint64 {
	id, err := strconv.ParseUint(obj.Handle, 10, 64)
	if err != nil {
		return dst
	}
	return append(dst, id)
}

// TestChecksAreBounded notes names on a host that never comes to rest.
func TestChecksAreBounded(t *testing.T) {
	serve, err := newServant()
	if err != nil {
		t.Fatal(err)
	}
	defer serve.stop()
	r := &Replayer{cfg: Config{Tree: emptyTree{}}, tree: emptyTree{}, view: newView(), q: newTestQueue(t, 1), far: &remote{serve: serve}}
	c := &r.recon
	for i := range 2 * toldLimit {
		c.calmAt = time.Now().Add(time.Hour)
		c.check(r, &notify.Event{Op: notify.OpCreate, Dir: o("1"), Name: strconv.Itoa(i)})
		if i%1000 == 0 {
			c.pause(r, false, false)
		}
	}
	if n := len(c.checks); n > toldLimit+1000 {
		t.Errorf("%d names are to be checked", n)
	}
}

// TestToldOnce has the events come by of what comparing told.
func TestToldOnce(t *testing.T) {
	r := &Replayer{tree: emptyTree{}, view: newView()}
	c := &r.recon
	c.told = map[nameKey]notify.Op{
		{1, "made"}: notify.OpCreate, {1, "gone"}: notify.OpDelete, {1, "from"}: notify.OpDelete, {1, "to"}: notify.OpCreate,
		{1, "out"}: notify.OpDelete, {1, "in"}: notify.OpCreate, {1, "again"}: notify.OpDelete,
	}
	c.toldAt = time.Now()
	d := o("1")
	for _, s := range []struct {
		ev   notify.Event
		want bool
	}{
		{notify.Event{Op: notify.OpModify, Dir: d, Name: "made"}, false},
		{notify.Event{Op: notify.OpCreate, Dir: d, Name: "made"}, true},
		{notify.Event{Op: notify.OpCreate, Dir: d, Name: "made"}, false},
		{notify.Event{Op: notify.OpDelete, Dir: d, Name: "gone"}, true},
		{notify.Event{Op: notify.OpDelete, Dir: d, Name: "gone"}, false},
		{notify.Event{Op: notify.OpRename, Dir: d, Name: "from", NewDir: d, NewName: "to"}, true},
		{notify.Event{Op: notify.OpRename, Dir: d, Name: "from", NewDir: d, NewName: "to"}, false},
		{notify.Event{Op: notify.OpRename, Dir: d, Name: "out"}, true},
		{notify.Event{Op: notify.OpRename, NewDir: d, NewName: "in"}, true},
		// Made since: then a later delete is another one.
		{notify.Event{Op: notify.OpCreate, Dir: d, Name: "again"}, false},
		{notify.Event{Op: notify.OpDelete, Dir: d, Name: "again"}, false},
		{notify.Event{Op: notify.OpDelete, Dir: o("elsewhere"), Name: "again"}, false},
	} {
		if got := c.swallow(r, &s.ev); got != s.want {
			t.Errorf("%v is swallowed: %v", s.ev, got)
		}
	}
	if len(c.told) != 0 {
		t.Errorf("left: %v", c.told)
	}
	// What was queued before the comparison has come by then.
	c.told[nameKey{1, "made"}] = notify.OpCreate
	c.toldAt = time.Now().Add(-lossPatience - time.Second)
	if c.swallow(r, &notify.Event{Op: notify.OpCreate, Dir: d, Name: "made"}) || len(c.told) != 0 {
		t.Error("what a comparison told is remembered for ever")
	}
}

// TestLossIsMadeUp loses events and has the differences told.
func TestLossIsMadeUp(t *testing.T) {
	b := newBed(t, before(t))
	b.watch("d", "d/f", "d/sub")
	b.look("d/g")
	g, f := b.obj("d/g"), b.obj("d/f")
	b.write("d/f", "changed")
	b.must(os.Rename(b.path("d/g"), b.path("d/g2")), os.Remove(b.path("d/sub")))
	b.write("d/new", "new")
	lost := notify.Event{Op: notify.OpOverflow}
	host := b.snapshot()
	// An event behind the loss whose change the comparison tells, too.
	b.push(lost, notify.Event{Op: notify.OpRename, Dir: b.obj("d"), Name: "g", NewDir: b.obj("d"), NewName: "g2", Object: g})
	heard := map[string]int{}
	for _, line := range b.heard() {
		heard[line]++
	}
	want := map[string]int{`d MOVED_FROM "g" cookie 1`: 1, `d MOVED_TO "g2" cookie 1`: 1, `d DELETE,ISDIR "sub"`: 1,
		`d/sub DELETE_SELF ""`: 1, `d/sub IGNORED ""`: 1, `d CREATE "new"`: 1,
		`d MODIFY "f"`: 1, `d/f MODIFY ""`: 1, `d OPEN "f"`: 1, `d/f OPEN ""`: 1, `d CLOSE_WRITE "f"`: 1, `d/f CLOSE_WRITE ""`: 1}
	if d := cmp.Diff(want, heard); d != "" {
		t.Errorf("heard (-want +got):\n%s", d)
	}
	b.expectHost(host)
	if d := b.guestDiffers(); d != "" {
		t.Error(d)
	}
	if n := b.fs.Stats().Overflows.Load(); n != 1 {
		t.Errorf("%d overflows", n)
	}
	b.heard() // what the test itself has read
	// New rights of a directory are told, whatever has happened in it since.
	b.must(os.Chmod(b.path("d"), 0o701))
	b.write("d/newer", "newer")
	b.push(lost)
	if heard := b.heard(); !slices.Contains(heard, `d ATTRIB,ISDIR ""`) || !slices.Contains(heard, `d CREATE "newer"`) {
		t.Errorf("heard %v", heard)
	}
	// Afterwards all is as usual.
	b.push(b.ev(notify.OpModify, "d", "f", f))
	b.expect(`d MODIFY "f"`, `d/f MODIFY ""`)
}

// TestUntoldChange: a file whose time stamps are of before the loss has changed all the same. Nobody is told, but what the
// guest had cached of it is not shown any more.
func TestUntoldChange(t *testing.T) {
	b := newBed(t, nil)
	b.write("f", "old")
	if got, err := os.ReadFile(filepath.Join(b.mnt, "f")); err != nil || string(got) != "old" {
		t.Fatalf("%q, %v", got, err)
	}
	b.watch(".")
	b.write("f", "changed")
	// All is delivered up to a time that is to come.
	elsewhere := notify.Object{FS: 1, Handle: "elsewhere"}
	b.src.batches <- []notify.Event{{Op: notify.OpModify, Dir: elsewhere, Name: "f", Time: time.Now().Add(time.Minute)}}
	<-b.src.emitted
	b.push(notify.Event{Op: notify.OpOverflow})
	b.expect()
	if got, err := os.ReadFile(filepath.Join(b.mnt, "f")); err != nil || string(got) != "changed" {
		t.Errorf("after the comparison the guest reads %q, %v", got, err)
	}
}
