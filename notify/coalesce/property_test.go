package coalesce

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/heraldfs/heraldfs/notify"
	"pgregory.net/rapid"
)

var epoch = time.Unix(1_000_000, 0)

func drawFeatures(t *rapid.T) features {
	return features{
		links: rapid.Bool().Draw(t, "links"), dirs: rapid.Bool().Draw(t, "dirs"),
		exchange: rapid.Bool().Draw(t, "exchange"), open: rapid.Bool().Draw(t, "open"),
		names: rapid.IntRange(2, 4).Draw(t, "names"), pids: rapid.Int32Range(1, 2).Draw(t, "pids"),
	}
}

// TestDrained reads the queue after every operation: each comes out as it was.
func TestDrained(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, c, f := newModel(), New(Config{}), drawFeatures(t)
		var got []notify.Event
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			first := len(m.events)
			m.fan = m.fan[:0]
			m.step(t, f)
			got = c.Push(got[:0], m.fan, epoch)
			if d := cmp.Diff(m.events[first:], got, cmp.Transformer("bare", bare)); d != "" {
				t.Fatalf("one operation (-did +told):\n%s", d)
			}
			for _, ev := range got {
				if ev.Verify {
					t.Fatalf("nothing was merged, but Verify: %v", ev)
				}
			}
		}
	})
}

// TestMerged lets the kernel merge between reads. Every difference that is left after
// replaying the events is at a name that they say to verify, nothing is told that did
// not happen, and nothing is left out but repetitions.
func TestMerged(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, c, f := newModel(), New(Config{}), drawFeatures(t)
		back := rapid.SampledFrom([]int{128, 128, 4, 1}).Draw(t, "back")
		copied := map[entry]notify.Object{}
		for range rapid.IntRange(1, 6).Draw(t, "reads") {
			m.fan, m.events = nil, nil
			for range rapid.IntRange(1, 14).Draw(t, "steps") {
				m.step(t, f)
			}
			var queue []notify.Raw
			lossless := true
			for _, r := range m.fan {
				var lost bool
				queue, lost = mergeQueue(queue, r, back)
				lossless = lossless && (!lost || r.Mask&(entryBits|notify.DeleteSelf) == 0)
			}
			before := maps.Clone(copied)
			events := c.Push(nil, queue, epoch)
			odd := replay(copied, events)
			unfixed := maps.Clone(copied)
			looked := verify(copied, m.tree, events)
			c.Settled()
			fail := func(why string) {
				t.Fatalf("%s\nbefore %v\ndid:\n%squeue:\n%stold:\n%stree without verify: %s\nwith verify: %s", why,
					treeDiff(nil, before), show(m.events), showRaws(queue), show(events), treeDiff(unfixed, m.tree), treeDiff(copied, m.tree))
			}
			if !sameTree(copied, m.tree) {
				fail("another tree")
			}
			for _, ev := range odd {
				if !looked[entry{ev.Dir, ev.Name}] {
					fail("impossible: " + show([]notify.Event{ev}))
				}
			}
			if lossless && !f.links && len(odd) > 0 {
				fail("possible, but not found: " + show(odd))
			}
			if lossless && !f.links && !sameTree(unfixed, m.tree) {
				fail("known, but not told")
			}
			if len(queue) == len(m.fan) && len(looked) == 0 && !cmp.Equal(m.events, events, cmp.Transformer("selfless", selfless)) && foldless(m.events) {
				fail("nothing was merged")
			}
			if why := invented(m.events, events); why != "" {
				fail(why)
			}
		}
	})
}

// TestCarried reads in the middle of what merges, and looks at the disk only in the end. A rename that was merged into one
// that has been read already is told when a later read proves it; nothing is told that did not happen.
func TestCarried(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, c, f := newModel(), New(Config{}), drawFeatures(t)
		var all []notify.Event
		copied := map[entry]notify.Object{}
		var queues string
		for range rapid.IntRange(2, 6).Draw(t, "reads") {
			m.fan = nil
			for range rapid.IntRange(1, 10).Draw(t, "steps") {
				m.step(t, f)
			}
			var queue []notify.Raw
			for _, r := range m.fan {
				queue, _ = mergeQueue(queue, r, 128)
			}
			events := c.Push(nil, queue, epoch)
			replay(copied, events)
			all = append(all, events...)
			queues += showRaws(queue) + "--\n"
		}
		verify(copied, m.tree, all)
		if why := invented(m.events, all); why != "" {
			t.Fatalf("%s\ndid:\n%squeue:\n%stold:\n%s", why, show(m.events), queues, show(all))
		}
		if !sameTree(copied, m.tree) {
			t.Fatalf("another tree: %s\ndid:\n%squeue:\n%stold:\n%s", treeDiff(copied, m.tree), show(m.events), queues, show(all))
		}
	})
}

// selfless makes one of the two ways to tell that a directory itself changed.
func selfless(ev notify.Event) notify.Event {
	if ev.Op == notify.OpAttrib && ev.IsDir {
		if ev.Object.IsZero() {
			ev.Object = ev.Dir
		}
		ev.Dir, ev.Name = notify.Object{}, "."
	}
	return bare(ev)
}

func foldless(events []notify.Event) bool {
	for i := 1; i < len(events); i++ {
		if events[i].Op == events[i-1].Op && events[i].Object == events[i-1].Object {
			return false
		}
	}
	return true
}

// invented compares the events told with those that happened, as sets, and the
// counts of those that change the tree.
func invented(did, told []notify.Event) string {
	count := func(events []notify.Event) map[notify.Event]int {
		n := map[notify.Event]int{}
		for _, ev := range events {
			ev = selfless(ev)
			ev.Pid = 0
			if ev.Op == notify.OpExchange || ev.Op == notify.OpRename {
				// The parts of an exchange merge with renames, and the other way.
				both := ev.Op == notify.OpExchange
				ev.Op, ev.IsDir, ev.Object = notify.OpRename, false, notify.Object{}
				ev.NewIsDir, ev.NewObject = false, notify.Object{}
				if both {
					n[ev]++
					ev.Dir, ev.Name, ev.NewDir, ev.NewName = ev.NewDir, ev.NewName, ev.Dir, ev.Name
				}
			}
			n[ev]++
		}
		return n
	}
	d, o := count(did), count(told)
	for ev, n := range o {
		if n > d[ev] {
			return "invented: " + show([]notify.Event{ev})
		}
	}
	for ev := range d {
		if o[ev] == 0 {
			return "left out: " + show([]notify.Event{ev})
		}
	}
	return ""
}

// TestInotify splits the stream anywhere and watches only some directories. Per
// directory, everything comes out in order, and every rename in one piece.
func TestInotify(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, f := newModel(), drawFeatures(t)
		c := New(Config{MoveWait: time.Millisecond})
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			m.step(t, f)
		}
		deaf := map[notify.Object]bool{}
		for _, d := range m.dirs[1:] {
			deaf[d] = rapid.IntRange(0, 3).Draw(t, "deaf") == 0
		}
		var stream []notify.Raw
		for _, r := range m.ino {
			if !deaf[r.Dir] {
				stream = append(stream, r)
			}
		}
		want := pairUp(stream)

		now := epoch
		var got []notify.Event
		for rest := stream; len(rest) > 0; {
			n := rapid.IntRange(1, min(len(rest), 5)).Draw(t, "read")
			got = c.Push(got, rest[:n], now)
			rest = rest[n:]
			now = now.Add(10 * time.Microsecond)
			if rapid.Bool().Draw(t, "flush") {
				got = c.Flush(got, now)
			}
		}
		if d := c.Deadline(); !d.IsZero() {
			got = c.Flush(got, d.Add(time.Hour))
		}
		if d := c.Deadline(); !d.IsZero() {
			t.Fatalf("still held until %v", d)
		}
		for _, d := range m.dirs {
			a, b := perDir(want, d), perDir(got, d)
			if diff := cmp.Diff(a, b, cmp.Transformer("bare", bare)); diff != "" {
				t.Fatalf("directory %s (-did +told):\n%s\nstream:\n%s\ntold:\n%s", d.Handle, diff, showRaws(stream), show(got))
			}
		}
	})
}

// pairUp is the plain meaning of a complete inotify stream: exchanges of a directory
// with something else as such, and everything else one by one, repetitions folded.
func pairUp(stream []notify.Raw) []notify.Event {
	mate := map[uint32]notify.Raw{}
	for _, r := range stream {
		if r.Mask&notify.MovedTo != 0 {
			mate[r.Cookie] = r
		}
	}
	var out []notify.Event
	seen := map[uint32]bool{}
	for _, r := range stream {
		ev := notify.Event{IsDir: r.Mask&notify.IsDir != 0, Dir: r.Dir, Name: r.Name}
		switch r.Mask &^ notify.IsDir {
		case notify.MovedFrom:
			seen[r.Cookie] = true
			ev.Op = notify.OpRename
			ev.NewDir, ev.NewName = mate[r.Cookie].Dir, mate[r.Cookie].Name
		case notify.MovedTo:
			if seen[r.Cookie] {
				continue
			}
			ev = notify.Event{Op: notify.OpRename, IsDir: ev.IsDir, NewDir: r.Dir, NewName: r.Name}
		case notify.Create:
			ev.Op = notify.OpCreate
		case notify.Delete:
			ev.Op = notify.OpDelete
		case notify.Modify:
			ev.Op = notify.OpModify
		case notify.Attrib:
			ev.Op = notify.OpAttrib
			if ev.Name == "" {
				ev.Name = "."
			}
		case notify.CloseWrite:
			ev.Op = notify.OpCloseWrite
		}
		out = append(out, ev)
	}
	return out
}

// perDir selects what dir's watchers hear, with exchanges as two renames and
// neighbours folded, so that it does not depend on where the stream was split.
func perDir(events []notify.Event, dir notify.Object) []notify.Event {
	var out []notify.Event
	add := func(ev notify.Event) {
		ev.IsDir = ev.IsDir && ev.Op != notify.OpRename // an exchange tells one side's only
		if n := len(out); n > 0 && bare(out[n-1]) == bare(ev) {
			return
		}
		out = append(out, ev)
	}
	for _, ev := range events {
		if ev.Dir != dir && ev.NewDir != dir {
			continue
		}
		ev = bare(ev)
		if ev.Op == notify.OpExchange {
			other := ev.NewIsDir
			ev.Op, ev.NewIsDir = notify.OpRename, false
			add(ev)
			ev.Dir, ev.Name, ev.NewDir, ev.NewName = ev.NewDir, ev.NewName, ev.Dir, ev.Name
			ev.IsDir = other
		}
		add(ev)
	}
	return out
}

// TestDeterministic runs one batch through coalescers of different history.
func TestDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, f := newModel(), drawFeatures(t)
		for range 30 {
			m.step(t, f)
		}
		var queue []notify.Raw
		for _, r := range m.fan {
			queue, _ = mergeQueue(queue, r, 128)
		}
		used := New(Config{})
		used.Push(nil, queue, epoch)
		used.forgetMoves()
		used.Settled()
		a, b := New(Config{}).Push(nil, slices.Clone(queue), epoch), used.Push(nil, queue, epoch)
		if d := cmp.Diff(a, b); d != "" {
			t.Fatal(d)
		}
	})
}
