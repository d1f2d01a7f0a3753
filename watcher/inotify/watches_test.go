package inotify

import (
	"testing"

	"github.com/heraldfs/heraldfs/notify"
)

func object(s string) notify.Object { return notify.Object{FS: 1, Type: 1, Handle: s} }

// table has watches by descriptor, each a directory and the one above it.
func table(dirs map[int32][2]string) watchTable {
	wt := newWatchTable()
	for wd, d := range dirs {
		wt.byWd[wd] = &watch{dir: object(d[0]), parent: object(d[1])}
		wt.byDir[object(d[0])] = wd
	}
	return wt
}

func dirEvent(wd int32, m notify.Mask, cookie uint32, name string) event {
	return event{wd: wd, mask: m | notify.IsDir, cookie: cookie, name: []byte(name)}
}

func TestSelfEvents(t *testing.T) {
	wt := table(map[int32][2]string{1: {"root", "outside"}, 2: {"d", "root"}, 3: {"e", "root"}})
	for i, tc := range []struct {
		ev   event
		want notify.Raw // zero: nobody shall hear
	}{
		{dirEvent(2, notify.Attrib, 0, ""), notify.Raw{}},
		{dirEvent(1, notify.Attrib, 0, ""),
			notify.Raw{Mask: notify.Attrib | notify.IsDir, Dir: object("root"), Name: ".", Object: object("root")}},
		// d is moved out: from now on nobody else tells of it.
		{dirEvent(1, notify.MovedFrom, 7, "d"), notify.Raw{Mask: notify.MovedFrom | notify.IsDir, Dir: object("root"), Name: "d", Cookie: 7}},
		{dirEvent(2, notify.MoveSelf, 0, ""), notify.Raw{Mask: notify.MoveSelf | notify.IsDir, Object: object("d"), Cookie: 7}},
		{dirEvent(2, notify.Attrib, 0, ""),
			notify.Raw{Mask: notify.Attrib | notify.IsDir, Dir: object("d"), Name: ".", Object: object("d")}},
		// And in again, below e.
		{dirEvent(3, notify.MovedTo, 8, "d"), notify.Raw{Mask: notify.MovedTo | notify.IsDir, Dir: object("e"), Name: "d", Cookie: 8}},
		{dirEvent(2, notify.MoveSelf, 0, ""), notify.Raw{Mask: notify.MoveSelf | notify.IsDir, Object: object("d"), Cookie: 8}},
		{dirEvent(2, notify.Attrib, 0, ""), notify.Raw{}},
		// Of a move from one place that is not marked to another the queue has nothing else.
		{dirEvent(1, notify.MovedFrom, 9, "d"), notify.Raw{Mask: notify.MovedFrom | notify.IsDir, Dir: object("root"), Name: "d", Cookie: 9}},
		{dirEvent(3, notify.Ignored, 0, ""), notify.Raw{}},
		{dirEvent(3, notify.Create, 0, "late"), notify.Raw{}},
		{dirEvent(77, notify.Create, 0, "never"), notify.Raw{}},
		{dirEvent(-1, notify.QOverflow, 0, ""), notify.Raw{Mask: notify.QOverflow}},
	} {
		got, ok := wt.raw(tc.ev)
		got.Moved = nil // see TestLineage
		if got != tc.want || ok != (tc.want != notify.Raw{}) {
			t.Errorf("%d: %v gave %+v, %v; want %+v", i, tc.ev.mask, got, ok, tc.want)
		}
	}
	if len(wt.byWd) != 2 || len(wt.byDir) != 2 {
		t.Errorf("an ignored watch was kept: %v", wt.byDir)
	}
}

// TestLineage follows which of the directories above an event were moved of late, as of the event.
func TestLineage(t *testing.T) {
	wt := table(map[int32][2]string{1: {"root", "outside"}, 2: {"a", "root"}, 3: {"b", "a"}, 4: {"c", "b"}, 5: {"s", "root"}})
	for i, tc := range []struct {
		ev   event
		want string // directories that were moved, nearest first
	}{
		{dirEvent(4, notify.Create, 0, "x"), ""},
		{dirEvent(1, notify.MovedFrom, 1, "a"), ""},
		// The kernel has moved it, and not told which it was.
		{dirEvent(4, notify.Create, 0, "x"), ""},
		// A rename within another directory comes between.
		{dirEvent(5, notify.MovedFrom, 2, "u"), ""},
		{dirEvent(5, notify.MovedTo, 2, "v"), ""},
		{dirEvent(2, notify.MoveSelf, 0, ""), ""},
		{dirEvent(4, notify.Create, 0, "x"), "a"},
		{dirEvent(2, notify.Create, 0, "x"), "a"},
		{dirEvent(5, notify.Create, 0, "x"), ""},
		{dirEvent(1, notify.Create, 0, "x"), ""},
		// Out of what was moved out, and into what was not.
		{dirEvent(3, notify.MovedFrom, 3, "c"), "a"},
		{dirEvent(4, notify.MoveSelf, 0, ""), ""},
		{dirEvent(4, notify.Create, 0, "x"), "c"},
		{dirEvent(2, notify.MovedFrom, 4, "b"), "a"},
		{dirEvent(5, notify.MovedTo, 4, "b"), ""},
		{dirEvent(3, notify.MoveSelf, 0, ""), ""},
		{dirEvent(3, notify.Create, 0, "x"), "b"},
		// In again, below b.
		{dirEvent(3, notify.MovedTo, 5, "a"), "b"},
		{dirEvent(2, notify.MoveSelf, 0, ""), ""},
		{dirEvent(2, notify.Create, 0, "x"), "ab"},
	} {
		raw, _ := wt.raw(tc.ev)
		got := ""
		for m := raw.Moved; m != nil; m = m.Next {
			got += m.Dir.Handle
		}
		if got != tc.want {
			t.Errorf("%d: %v of %d is below %q, want %q", i, tc.ev.mask, tc.ev.wd, got, tc.want)
		}
	}
	wt.settled()
	if raw, _ := wt.raw(dirEvent(2, notify.Create, 0, "x")); raw.Moved != nil {
		t.Error("all is told, and a move is still remembered")
	}
	// More moves than are remembered, and a circle, which a parent that is not true any more can make.
	for i := range 2 * maxMoved {
		wt.raw(dirEvent(1, notify.MovedFrom, uint32(100+i), "a"))
		e := &watch{dir: object(string(rune(i))), parent: object("root")}
		wt.moveSelf(e)
	}
	if len(wt.moved) > maxMoved {
		t.Errorf("%d moves are remembered", len(wt.moved))
	}
	wt.byWd[2].parent, wt.byWd[3].parent = object("b"), object("a")
	wt.moved[object("a")] = struct{}{}
	wt.raw(dirEvent(3, notify.Create, 0, "x"))
}
