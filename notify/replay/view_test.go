package replay

import (
	"fmt"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func entryOf(id uint64, mode, nlink uint32) *fuse.EntryOut {
	return &fuse.EntryOut{NodeId: id, Attr: fuse.Attr{Mode: mode | 0o644, Nlink: nlink}}
}

func fileOut(id uint64) *fuse.EntryOut { return entryOf(id, unix.S_IFREG, 1) }
func dirOut(id uint64) *fuse.EntryOut  { return entryOf(id, unix.S_IFDIR, 2) }

// expectName checks what a name stands for now and stood for before; zero is nothing.
func expectName(t *testing.T, v *view, parent uint64, name string, now, before uint64) {
	t.Helper()
	id := func(n *vnode) uint64 {
		if n == nil {
			return 0
		}
		return n.id
	}
	n, b := v.lookup(parent, name)
	if id(n) != now || id(b) != before {
		t.Errorf("%d/%s is %d and was %d, must be %d and %d", parent, name, id(n), id(b), now, before)
	}
}

func TestViewShadow(t *testing.T) {
	v := newView()
	v.told(rootID, "a", fileOut(10), true, false)
	expectName(t, v, rootID, "a", 10, 10)
	// A guest process finds another file there, ahead of the event, and then nothing.
	v.told(rootID, "a", fileOut(11), true, false)
	expectName(t, v, rootID, "a", 11, 10)
	v.told(rootID, "a", fileOut(12), true, false)
	expectName(t, v, rootID, "a", 12, 10)
	v.absent(rootID, "a")
	expectName(t, v, rootID, "a", 0, 10)
	// The event has been replayed.
	v.removed(rootID, "a", false)
	expectName(t, v, rootID, "a", 0, 0)
	// What the shadow stood for is forgotten.
	v.told(rootID, "b", fileOut(20), true, false)
	v.absent(rootID, "b")
	v.forget(20, 1)
	expectName(t, v, rootID, "b", 0, 0)
}

func TestViewDirectoryHasOneDentry(t *testing.T) {
	v := newView()
	v.told(rootID, "d", dirOut(10), true, false)
	v.told(10, "f", fileOut(11), true, false)
	v.told(rootID, "e", dirOut(10), true, false)
	expectName(t, v, rootID, "e", 10, 10)
	expectName(t, v, rootID, "d", 0, 10) // its rename is still to be told
	if p, name, ok := v.place(v.node(10)); !ok || p != rootID || name != "e" {
		t.Errorf("the directory is at %d/%s, %v", p, name, ok)
	}
	if d := v.depth(11); d != 2 {
		t.Errorf("depth %d of d/f", d)
	}
	// A file has as many as it has links.
	v.told(rootID, "l", fileOut(11), true, false)
	if n := v.otherNames(v.node(11), rootID, "l"); n != 1 {
		t.Errorf("%d other names of a file with two", n)
	}
}

func TestViewRename(t *testing.T) {
	v := newView()
	v.told(rootID, "d", dirOut(10), false, false)
	v.told(rootID, "a", fileOut(11), false, false)
	v.told(10, "b", entryOf(12, unix.S_IFREG, 2), false, false)
	v.renamed(rootID, "a", 10, "b", false, false, nil, nil)
	expectName(t, v, rootID, "a", 0, 0)
	expectName(t, v, 10, "b", 11, 11)
	if n := v.linksOf(v.node(12)); n != 1 {
		t.Errorf("the replaced file has %d links, must be 1", n)
	}
	v.told(rootID, "c", dirOut(13), false, false)
	v.renamed(rootID, "c", 10, "b", true, true, nil, nil)
	expectName(t, v, rootID, "c", 11, 11)
	expectName(t, v, 10, "b", 13, 13)
	long := time.Now().Add(-time.Hour)
	if exists, ok := v.after(rootID, "c", long); !ok || !exists {
		t.Errorf("the guest's own exchange left %v, %v at its source", exists, ok)
	}
	// The replay knows better what the names stood for.
	v.told(0, "", fileOut(14), false, false)
	v.renamed(rootID, "nothing", rootID, "x", false, false, v.node(14), nil)
	expectName(t, v, rootID, "x", 14, 14)
	v.renamed(99, "x", rootID, "y", false, false, nil, nil)
	expectName(t, v, rootID, "y", 0, 0)
}

func TestViewForget(t *testing.T) {
	v := newView()
	v.told(rootID, "d", dirOut(10), false, false)
	v.told(10, "f", fileOut(11), false, false)
	v.told(rootID, "l", fileOut(11), false, true) // the file system did not count this one
	for _, c := range []struct{ n, rest, left uint64 }{{1, 0, 1}, {1, 1, 0}} {
		if rest := v.forget(11, c.n); rest != c.rest {
			t.Errorf("the file system hears of %d, must be %d", rest, c.rest)
		}
		if n := v.node(11); (n != nil) != (c.left > 0) {
			t.Errorf("node is %v with %d lookups left", n, c.left)
		}
	}
	expectName(t, v, 10, "f", 0, 0)
	expectName(t, v, rootID, "l", 0, 0)
	n := 0
	for _, id := range []uint64{10, rootID} {
		for range v.node(id).childrenLocked() {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d dentries left, must be 1", n)
	}
	if rest := v.forget(77, 3); rest != 3 {
		t.Errorf("of a node that is not known the file system hears %d, must be 3", rest)
	}
	v.forget(rootID, 5)
	v.forget(stagingID, 5)
	if v.node(rootID) == nil || v.node(stagingID) == nil {
		t.Error("the root can be forgotten")
	}
	v.told(10, "g", fileOut(12), false, false)
	v.forget(10, 1)
	if n := v.node(12); n == nil || n.parent != nil {
		t.Errorf("a child of a forgotten directory is %+v", n)
	}
}

func TestViewGhosts(t *testing.T) {
	v := newView()
	known := v.len()
	g, d := v.ghost(false), v.ghost(true)
	if !g.isGhost() || g.isDir() || !d.isDir() || g.id == d.id {
		t.Errorf("ghosts %+v and %+v", g, d)
	}
	v.told(rootID, "g", &fuse.EntryOut{NodeId: g.id, Attr: fuse.Attr{Mode: unix.S_IFREG, Nlink: 1}}, false, false)
	v.release(g) // the kernel holds it
	v.release(d)
	v.release(nil)
	if v.node(g.id) == nil || v.node(d.id) != nil {
		t.Error("release keeps what it must drop, or drops what the kernel holds")
	}
	v.forget(g.id, 1)
	if v.len() != known {
		t.Errorf("%d nodes are left of ghosts", v.len()-known)
	}
	if ids := v.dirs(); len(ids) != 1 || ids[0] != rootID {
		t.Errorf("known directories %v", ids)
	}
}

// TestViewInvariants does anything in any order.
func TestViewInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := newView()
		type known struct{ count, extra uint64 }
		counts := map[uint64]known{}
		id := rapid.Uint64Range(2, 9)
		parent := rapid.SampledFrom([]uint64{rootID, 2, 3, 4})
		name := rapid.SampledFrom([]string{"a", "b", "c"})
		steps := rapid.IntRange(1, 60).Draw(t, "steps")
		for range steps {
			p, n, x := parent.Draw(t, "parent"), name.Draw(t, "name"), id.Draw(t, "id")
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1:
				out := fileOut(x)
				if x <= 4 {
					out = dirOut(x)
				}
				if x == p {
					continue // no directory is in itself
				}
				extra := rapid.Bool().Draw(t, "extra")
				v.told(p, n, out, rapid.Bool().Draw(t, "early"), extra)
				k := counts[x]
				k.count++
				if extra {
					k.extra++
				}
				counts[x] = k
			case 2:
				v.absent(p, n)
			case 3:
				v.removed(p, n, rapid.Bool().Draw(t, "guest"))
			case 4:
				v.renamed(p, n, parent.Draw(t, "new parent"), name.Draw(t, "new name"),
					rapid.Bool().Draw(t, "exchange"), rapid.Bool().Draw(t, "guest"), nil, nil)
			case 5:
				k := counts[x]
				if k.count == 0 {
					continue
				}
				nlookup := rapid.Uint64Range(1, k.count).Draw(t, "nlookup")
				rest := v.forget(x, nlookup)
				own := min(k.extra, nlookup)
				if rest != nlookup-own {
					t.Fatalf("forget %d of %+v: the file system hears of %d", nlookup, k, rest)
				}
				k.count, k.extra = k.count-nlookup, k.extra-own
				if k.count == 0 {
					delete(counts, x)
				} else {
					counts[x] = k
				}
			}
			if err := v.check(); err != nil {
				t.Fatal(err)
			}
		}
		for x, k := range counts {
			if n := v.node(x); n == nil || n.lookups() != k.count || n.getLocked().extra != k.extra {
				t.Fatalf("node %d is %+v, must have %+v", x, n, k)
			}
			v.forget(x, k.count)
		}
		if v.len() != 1 {
			t.Fatalf("%d nodes are left when all is forgotten", v.len())
		}
	})
}

// check looks whether nodes, names and children agree.
func (v *view) check() error {
	edges, positive := 0, 0
	for id, n := range v.nodes.All() {
		if n.id != id || id != rootID && id != stagingID && n.lookups() == 0 && !n.isGhost() {
			return fmt.Errorf("node %d: %+v", id, n)
		}
		if n.getLocked().extra > n.lookups() {
			return fmt.Errorf("node %d: %d of %d lookups are not the file system's", id, n.getLocked().extra, n.lookups())
		}
		if n.isDir() && len(n.getLocked().names) > 0 {
			return fmt.Errorf("directory %d has %d names more than one", id, len(n.more.names))
		}
		for e := range n.edgesLocked() {
			edges++
			if v.nodes.Get(e.parent.id) != e.parent {
				return fmt.Errorf("node %d is in %d, which was forgotten", id, e.parent.id)
			}
			if e.parent.atLocked(e.name).node != n {
				return fmt.Errorf("node %d is not what %d/%s stands for", id, e.parent.id, e.name)
			}
		}
		for name, d := range n.childrenLocked() {
			if d.empty() {
				return fmt.Errorf("%d/%s is empty", id, name)
			}
			if d.node != nil {
				positive++
				if v.nodes.Get(d.node.id) != d.node {
					return fmt.Errorf("%d/%s stands for %d, which was forgotten", id, name, d.node.id)
				}
			}
		}
	}
	if edges != positive {
		return fmt.Errorf("%d names of nodes and %d names that stand for one", edges, positive)
	}
	return nil
}

func TestTombstones(t *testing.T) {
	v := newView()
	start := time.Now().Add(-time.Second)
	v.removed(rootID, "x", true)
	if exists, ok := v.after(rootID, "x", start); !ok || exists {
		t.Errorf("after the guest's unlink: %v, %v", exists, ok)
	}
	if _, ok := v.after(rootID, "x", time.Now().Add(time.Second)); ok {
		t.Error("what the guest did before the event counts")
	}
	if _, ok := v.after(rootID, "y", start); ok {
		t.Error("a name that the guest never touched is marked")
	}
	for i := range tombstoneLimit {
		v.marks.put(rootID, fmt.Sprint(i), true)
	}
	if _, ok := v.after(rootID, "x", start); !ok {
		t.Error("the older generation is forgotten too early")
	}
	for i := range 3 * tombstoneLimit {
		v.marks.put(2, fmt.Sprint(i), true)
	}
	if _, ok := v.after(rootID, "x", start); ok {
		t.Error("nothing is ever forgotten")
	}
	if n := len(v.marks.young) + len(v.marks.old); n > 2*tombstoneLimit {
		t.Errorf("%d names remembered, at most %d", n, 2*tombstoneLimit)
	}
}
