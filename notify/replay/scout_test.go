package replay

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/heraldfs/heraldfs/notify"
)

// trips returns how often the replayer has waited for its servant. Nothing must be going on.
func (b *bed) trips() uint64 { return b.r.far.serve.trips }

// nameless takes the objects away from events, as inotify does.
func nameless(events []notify.Event) []notify.Event {
	for i := range events {
		events[i].Object = notify.Object{}
	}
	return events
}

// TestRoundTrips counts how often the replayer waits for the process: never for an event that is alone,
// seldom in a burst.
func TestRoundTrips(t *testing.T) {
	const files = 200
	name := func(i int) string { return fmt.Sprint("f", i) }
	for _, objects := range []bool{true, false} {
		t.Run(fmt.Sprint("objects ", objects), func(t *testing.T) {
			b := newBed(t, nil)
			b.watch(".")
			tell := func(n int, op notify.Op, before func(i int)) {
				t.Helper()
				var events []notify.Event
				for i := range n {
					if op == notify.OpDelete { // its object can only be asked for before
						events = append(events, b.ev(op, ".", name(i), b.obj(name(i))))
					}
					before(i)
					if op != notify.OpDelete {
						events = append(events, b.ev(op, ".", name(i), b.obj(name(i))))
					}
				}
				if !objects {
					events = nameless(events)
				}
				was := b.trips()
				b.push(events...)
				got, want := b.trips()-was, uint64(0)
				if n > 1 {
					// The servant is woken for so many at a time. What a burst leaves in doubt is settled by it as well.
					want = files/scoutReach + 1 + 2
				}
				if got > want {
					t.Errorf("%d times %v: %d round trips, at most %d", n, op, got, want)
				}
				if heard := len(b.heard()); heard < n {
					t.Errorf("%d times %v: heard %d events", n, op, heard)
				}
			}
			read := func(i int) {
				if _, err := os.ReadFile(filepath.Join(b.mnt, name(i))); err != nil {
					t.Error(err)
				}
			}
			for _, n := range []int{1, files} {
				tell(n, notify.OpCreate, func(i int) { b.write(name(i), "old") })
				for i := range n {
					read(i)
				}
				tell(n, notify.OpModify, func(i int) { b.write(name(i), "new") })
				for i := range n {
					if got, err := os.ReadFile(filepath.Join(b.mnt, name(i))); err != nil || string(got) != "new" {
						t.Fatalf("%s: %q, %v after its event", name(i), got, err)
					}
				}
				b.heard()
				tell(n, notify.OpAttrib, func(i int) { b.must(os.Chmod(b.path(name(i)), 0o600)) })
				tell(n, notify.OpDelete, func(i int) { b.must(os.Remove(b.path(name(i)))) })
			}
		})
	}
}

// askedTree is a Tree that counts what it is asked, and the lookups that are not given back.
type askedTree struct {
	emptyTree
	fuse.RawFileSystem
	mu      sync.Mutex
	asked   []string
	lookups int
}

func (t *askedTree) Obtain(obj notify.Object, _ uint64, name string, out *fuse.EntryOut) fuse.Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked = append(t.asked, "obtain "+name)
	if name == "gone" {
		return fuse.ENOENT
	}
	t.lookups++
	*out = *fileOut(100)
	return fuse.OK
}

func (t *askedTree) Attr(nodeid uint64, _ *fuse.Attr) fuse.Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked = append(t.asked, fmt.Sprint("attr ", nodeid))
	return fuse.ENOENT
}

func (t *askedTree) InvalInode(nodeid uint64, off, _ int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked = append(t.asked, fmt.Sprint("inval ", nodeid, " ", off))
	return nil
}

func (t *askedTree) InvalEntry(uint64, string, bool) error { return nil }

func (t *askedTree) Forget(uint64, uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lookups--
}

func (t *askedTree) took() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.asked
	t.asked = nil
	return a
}

// newScout returns a Replayer without a mount. The guest knows the file 10 as f, and has read it.
func newScout(t *testing.T) (*Replayer, *askedTree) {
	t.Helper()
	tree := &askedTree{RawFileSystem: fuse.NewDefaultRawFileSystem()}
	f := NewFS(tree)
	serve, err := newServant()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(serve.stop)
	r := &Replayer{cfg: Config{Tree: tree, Notify: tree}, fs: f, tree: tree, view: f.view, mask: notify.AllMask,
		stats: &f.stats, q: newTestQueue(t, 100)}
	r.far = &remote{Tree: tree, serve: serve, raw: tree, notify: tree, failed: r.refused}
	r.view.told(rootID, "f", fileOut(10), false, false)
	r.view.opened(10)
	return r, tree
}

// TestScouting asks what can be known ahead, nothing that can not, and gives back what was not used.
func TestScouting(t *testing.T) {
	root, ten := o("1"), o("10")
	at := func(op notify.Op, name string, obj notify.Object) notify.Event {
		return notify.Event{Op: op, Dir: root, Name: name, Object: obj}
	}
	none := notify.Object{}
	moved := func(name, newName string) notify.Event {
		return notify.Event{Op: notify.OpRename, Dir: root, Name: name, NewDir: root, NewName: newName}
	}
	for _, c := range []struct {
		events []notify.Event
		want   []string
	}{
		{[]notify.Event{at(notify.OpCreate, "n", none)}, []string{"obtain n"}},
		{[]notify.Event{at(notify.OpCreate, "gone", o("7"))}, []string{"obtain gone"}},
		{[]notify.Event{isDir(at(notify.OpCreate, "d", none))}, nil},
		{[]notify.Event{at(notify.OpCreate, "n", none), at(notify.OpDelete, "n", none)}, nil},
		{[]notify.Event{at(notify.OpCreate, "n", o("7")), at(notify.OpDelete, "n", o("7"))}, []string{"obtain n"}},
		{[]notify.Event{at(notify.OpModify, "f", none)}, []string{"inval 10 0"}},
		{[]notify.Event{at(notify.OpCloseWrite, "other", ten)}, []string{"inval 10 0"}},
		{[]notify.Event{at(notify.OpModify, "other", none), at(notify.OpAccess, "f", none)}, nil},
		{[]notify.Event{at(notify.OpAttrib, "f", none), at(notify.OpAttrib, ".", root)}, []string{"inval 10 -1"}},
		{[]notify.Event{{Op: notify.OpLinkCount, Object: ten}}, []string{"inval 10 -1"}},
		{[]notify.Event{at(notify.OpDelete, "f", none)}, []string{"attr 10"}},
		{[]notify.Event{at(notify.OpDelete, "other", none)}, nil},
		{[]notify.Event{moved("g", "f"), at(notify.OpAccess, "f", none)}, []string{"attr 10"}},
	} {
		r, tree := newScout(t)
		found := r.scoutBatch(c.events)
		if d := cmp.Diff(c.want, tree.took()); d != "" {
			t.Errorf("%v, by the source (-want +got):\n%s", c.events, d)
		}
		r.ahead.reset(c.events)
		r.found.reset(found)
		for i := range c.events {
			r.scout(c.events, i)
		}
		if again := tree.took(); again != nil {
			t.Errorf("%v: asked twice: %v", c.events, again)
		}
		r.passOver(len(c.events))
		r.found.reset(nil)
		for i := range c.events {
			r.ahead.advance(c.events, i)
			r.scout(c.events, i)
		}
		r.passOver(len(c.events))
		r.far.serve.await()
		if d := cmp.Diff(c.want, tree.took()); d != "" {
			t.Errorf("%v, by the servant (-want +got):\n%s", c.events, d)
		}
		if tree.lookups != 0 {
			t.Errorf("%v: %d lookups are kept", c.events, tree.lookups)
		}
	}
}

// TestFindings uses what was found out, for its own event only, and an entry once.
func TestFindings(t *testing.T) {
	r, tree := newScout(t)
	root := o("1")
	events := []notify.Event{
		{Op: notify.OpCreate, Dir: root, Name: "n"}, {Op: notify.OpDelete, Dir: root, Name: "f"}, {Op: notify.OpModify, Dir: root, Name: "f"},
		{Op: notify.OpCreate, Dir: root, Name: "gone"}, {Op: notify.OpRename, Dir: root, Name: "gone", NewDir: root, NewName: "new"},
	}
	// The name is moved away in the end: whoever found that nothing is there must not say so of the time before.
	found := r.scoutBatch(events[:4])
	found = append(found, finding{at: 4, quest: questVacant, gone: true})
	r.ahead.reset(events)
	r.found.reset(found)
	var got []string
	for i := range events {
		r.ahead.advance(events, i)
		r.scout(events, i)
		var out fuse.EntryOut
		for range 2 {
			f, asked := r.found.entry(notify.Object{}, rootID, events[i].Name, &out)
			got = append(got, fmt.Sprint("entry ", asked, f, out.NodeId))
		}
		if r.obtain(notify.Object{}, root, rootID, "gone", &out) {
			t.Error("what is not there was obtained")
		}
		got = append(got, fmt.Sprint(r.found.gone(10), r.found.gone(11), r.found.dropped(10, notify.OpModify), r.found.dropped(10, notify.OpAttrib), r.found.vacant()))
	}
	want := []string{
		"entry true true 100", "entry false false 100", "false false false false false",
		"entry false false 0", "entry false false 0", "true false false false false",
		"entry false false 0", "entry false false 0", "false false true false false",
		"entry true false 0", "entry false false 0", "false false false false false",
		"entry false false 0", "entry false false 0", "false false false false true",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	r.passOver(len(events))
	r.far.serve.await()
	if tree.lookups != 1 {
		t.Errorf("%d lookups are kept; the one that was used must be", tree.lookups)
	}
}

// TestScoutsLeaveTheQueueAlone has the source's goroutine go on reading when there is much to read.
func TestScoutsLeaveTheQueueAlone(t *testing.T) {
	r, tree := newScout(t)
	long := make([]notify.Event, scoutEarly+1)
	for i := range long {
		long[i] = notify.Event{Op: notify.OpCreate, Dir: o("1"), Name: fmt.Sprint(i)}
	}
	r.scoutBatch(long)
	if err := r.q.put(long, nil, true); err != nil {
		t.Fatal(err)
	}
	r.scoutBatch(long[:1])
	if asked := tree.took(); asked != nil {
		t.Errorf("asked %v", asked)
	}
}
