package replay

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// o names an object by a word.
func o(word string) notify.Object { return notify.Object{FS: 1, Type: 1, Handle: word} }

// numberTree names the object of a node by its number.
type numberTree struct{ Tree }

func (numberTree) Object(id uint64) (notify.Object, bool) {
	if id == 0 {
		return notify.Object{}, false
	}
	return o(strconv.FormatUint(id, 10)), true
}

func TestLookahead(t *testing.T) {
	none := notify.Object{}
	events := []notify.Event{
		{Op: notify.OpCreate, Dir: o("d"), Name: "a"},
		{Op: notify.OpModify, Dir: o("d"), Name: "b"},
		{Op: notify.OpRename, Dir: o("d"), Name: "a", NewDir: o("e"), NewName: "c"},
		{Op: notify.OpDelete, Dir: o("d"), Name: "x", Object: o("x")},
		{Op: notify.OpDelete, Dir: o("d"), Name: "y", Object: o("x")},
		{Op: notify.OpCreate, Dir: o("d"), Name: "z", Object: o("x")},
	}
	var l lookahead
	l.reset(events)
	l.advance(events, 0)
	for _, c := range []struct {
		dir  notify.Object
		name string
		want bool
	}{{o("d"), "a", true}, {o("e"), "c", true}, {o("d"), "b", false}, {o("d"), "c", false}, {none, "a", false}} {
		if got := l.changes(c.dir, c.name); got != c.want {
			t.Errorf("changes(%v, %q) = %v", c.dir, c.name, got)
		}
	}
	if l.links[o("x")] != 1 {
		t.Errorf("%d links of x are still to go, must be 1", l.links[o("x")])
	}
	l.advance(events, 1)
	l.advance(events, 2)
	if l.changes(o("d"), "a") {
		t.Error("the last change of a name is behind itself")
	}
	l.advance(events, 3)
	if n := l.links[o("x")]; n != 0 {
		t.Errorf("after one delete, one delete and one create are left: %d", n)
	}
	l.advance(events, 4)
	l.advance(events, 5)
	if len(l.links) != 0 {
		t.Errorf("at the end links are left: %v", l.links)
	}
	l.reset(events[1:])
	l.shift(1)
	if !l.later(1, o("d"), "a") || l.later(2, o("d"), "a") {
		t.Error("shifted positions are wrong")
	}
	many := make([]notify.Event, backlog+2)
	for i := range many {
		many[i] = notify.Event{Op: notify.OpCreate, Dir: o("d"), Name: strconv.Itoa(i), Object: o(strconv.Itoa(i))}
	}
	many[1].Object = many[0].Object
	l.reset(many)
	for i, want := range map[int]bool{0: false, 1: true, 2: false} {
		l.advance(many, i)
		if got := l.hurried(many[i].Object); got != want {
			t.Errorf("hurried at %d is %v", i, got)
		}
	}
}

func TestPlaces(t *testing.T) {
	var p places
	expect := func(dir string, want placeRef, ok bool) {
		t.Helper()
		if got, has := p.get(o(dir)); has != ok || got != want {
			t.Errorf("%s is at %v, %v; must be %v, %v", dir, got, has, want, ok)
		}
	}
	at := func(dir, name string) placeRef { return placeRef{o(dir), name} }
	p.saw(&notify.Event{Op: notify.OpCreate, IsDir: true, Dir: o("r"), Name: "a", Object: o("A")})
	p.saw(&notify.Event{Op: notify.OpCreate, Dir: o("r"), Name: "f", Object: o("F")})
	p.saw(&notify.Event{Op: notify.OpCreate, IsDir: true, Dir: o("r"), Name: "n"})
	expect("A", at("r", "a"), true)
	expect("F", placeRef{}, false)
	p.saw(&notify.Event{Op: notify.OpRename, IsDir: true, Dir: o("r"), Name: "a", NewDir: o("s"), NewName: "b", Object: o("A")})
	expect("A", at("s", "b"), true)
	p.saw(&notify.Event{Op: notify.OpCreate, IsDir: true, Dir: o("r"), Name: "c", Object: o("C")})
	p.saw(&notify.Event{Op: notify.OpExchange, IsDir: true, NewIsDir: true, Dir: o("s"), Name: "b", NewDir: o("r"), NewName: "c",
		Object: o("A"), NewObject: o("C")})
	expect("A", at("r", "c"), true)
	expect("C", at("s", "b"), true)
	// Renamed over an empty directory.
	p.saw(&notify.Event{Op: notify.OpRename, IsDir: true, Dir: o("s"), Name: "b", NewDir: o("r"), NewName: "c", Object: o("C")})
	expect("A", placeRef{}, false)
	expect("C", at("r", "c"), true)
	p.saw(&notify.Event{Op: notify.OpDelete, IsDir: true, Dir: o("r"), Name: "c", Object: o("C")})
	expect("C", placeRef{}, false)
	for i := range 4 * placesLimit {
		name := strconv.Itoa(i)
		p.put(o(name), at("r", name))
	}
	if n := len(p.young) + len(p.old); n > 2*placesLimit || len(p.at) > placesLimit {
		t.Errorf("%d places remembered, at most %d", n, 2*placesLimit)
	}
	expect(strconv.Itoa(4*placesLimit-1), at("r", strconv.Itoa(4*placesLimit-1)), true)
	expect("1", placeRef{}, false)
}

// tells formats what a diff makes of differences.
func tells(d *diff) (out []string) {
	r := &Replayer{tree: numberTree{}}
	for _, ev := range d.events(r) {
		s := fmt.Sprintf("%v %s/%s", ev.Op, ev.Dir.Handle, ev.Name)
		if ev.Op == notify.OpRename {
			s += fmt.Sprintf(" -> %s/%s", ev.NewDir.Handle, ev.NewName)
		}
		out = append(out, s+" "+ev.Object.Handle)
	}
	return out
}

func TestDiffOrder(t *testing.T) {
	f := func(parent uint64, name string, node uint64, depth int) found {
		return found{parent: parent, name: name, node: node, depth: depth}
	}
	dir := func(f found) found {
		f.isDir = true
		return f
	}
	for _, c := range []struct {
		what string
		d    diff
		want []string
	}{
		{"moves before deletes before creates", diff{
			gone:  []found{f(1, "gone", 10, 0), f(1, "from", 11, 0)},
			added: []found{f(1, "new", 12, 0), f(2, "to", 11, 1)},
		}, []string{"rename 1/from -> 2/to 11", "delete 1/gone 10", "create 1/new 12"}},
		{"a chain is undone from its end", diff{
			gone:  []found{f(1, "a", 10, 0), f(1, "b", 11, 0)},
			added: []found{f(1, "b", 10, 0), f(1, "c", 11, 0)},
		}, []string{"rename 1/b -> 1/c 11", "rename 1/a -> 1/b 10"}},
		{"a cycle", diff{
			gone:  []found{f(1, "a", 10, 0), f(1, "b", 11, 0)},
			added: []found{f(1, "a", 11, 0), f(1, "b", 10, 0)},
		}, []string{"rename 1/b -> 1/a 11", "create 1/b 10"}},
		{"a name that was replaced by a new file", diff{
			gone:  []found{f(1, "a", 10, 0)},
			added: []found{f(1, "a", 11, 0)},
		}, []string{"delete 1/a 10", "create 1/a 11"}},
		{"a name that was replaced by a known file", diff{
			gone:  []found{f(1, "a", 10, 0), f(1, "b", 11, 0)},
			added: []found{f(1, "b", 10, 0)},
		}, []string{"rename 1/a -> 1/b 10"}},
		{"the deepest is deleted first", diff{
			gone: []found{f(1, "d", 10, 0), f(10, "e", 11, 1), f(11, "f", 12, 2), f(11, "g", 13, 2)},
		}, []string{"delete 11/f 12", "delete 11/g 13", "delete 10/e 11", "delete 1/d 10"}},
		{"two names of one file, one of them moved", diff{
			gone:  []found{f(1, "a", 10, 0), f(1, "b", 10, 0)},
			added: []found{f(1, "c", 10, 0)},
		}, []string{"rename 1/a -> 1/c 10", "delete 1/b 10"}},
		{"a file in the place of a directory", diff{
			gone:  []found{f(1, "a", 10, 0), dir(f(1, "d", 11, 0)), f(11, "e", 12, 1)},
			added: []found{f(1, "d", 10, 0)},
		}, []string{"delete 11/e 12", "delete 1/d 11", "rename 1/a -> 1/d 10"}},
		{"what waits for that", diff{
			gone:  []found{f(1, "a", 10, 0), dir(f(1, "d", 11, 0)), dir(f(1, "x", 13, 0)), f(1, "y", 14, 0)},
			added: []found{f(1, "d", 10, 0), dir(f(1, "a", 13, 0)), f(1, "z", 14, 0)},
		}, []string{"rename 1/y -> 1/z 14", "delete 1/d 11", "rename 1/a -> 1/d 10", "rename 1/x -> 1/a 13"}},
		{"a cycle of two types", diff{
			gone:  []found{f(1, "a", 10, 0), dir(f(1, "d", 11, 0))},
			added: []found{dir(f(1, "a", 11, 0)), f(1, "d", 10, 0)},
		}, []string{"delete 1/a 10", "rename 1/d -> 1/a 11", "create 1/d 10"}},
		{"a name that was only listed", diff{gone: []found{f(1, "a", 0, 0)}}, []string{"delete 1/a "}},
		{"changes come last", diff{
			gone:    []found{f(1, "a", 10, 0)},
			changed: []notify.Event{{Op: notify.OpModify, Dir: o("1"), Name: "b", Object: o("11")}},
		}, []string{"delete 1/a 10", "modify 1/b 11"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			got := tells(&c.d)
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestLinkCounts(t *testing.T) {
	var l linkCounts
	l.init()
	now := time.Now()
	if l.timeout(now, time.Millisecond) != 0 {
		t.Error("nothing waits and somebody is woken")
	}
	// A link: its ATTRIB comes first.
	l.add(o("a"), now)
	l.add(o("a"), now)
	if len(l.pending) != 1 || l.timeout(now, time.Millisecond) != time.Millisecond {
		t.Errorf("%d pending, to be woken in %v", len(l.pending), l.timeout(now, time.Millisecond))
	}
	if got := l.timeout(now.Add(time.Hour), time.Millisecond); got <= 0 {
		t.Errorf("what is overdue waits for %v", got)
	}
	l.cover(o("a"), true)
	l.cover(o("b"), true) // whose ATTRIB was merged away
	if len(l.pending) != 0 || len(l.covered) != 0 {
		t.Errorf("left: %v, %v", l.pending, l.covered)
	}
	// A file that was replaced: its ATTRIB comes last.
	l.cover(o("c"), false)
	l.add(o("c"), time.Now())
	if len(l.pending) != 0 || len(l.covered) != 0 {
		t.Errorf("left: %v, %v", l.pending, l.covered)
	}
	// One that comes much later has another cause.
	l.cover(o("d"), false)
	l.add(o("d"), time.Now().Add(2*coveredLife))
	if len(l.pending) != 1 {
		t.Errorf("pending: %v", l.pending)
	}
	l.cover(notify.Object{}, false)
	if len(l.covered) != 0 {
		t.Errorf("no object is covered: %v", l.covered)
	}
}

// TestRefused sends requests with the replayer's thread id that no step expects.
func TestRefused(t *testing.T) {
	const tid = 12345
	f := NewFS(fuse.NewDefaultRawFileSystem())
	f.tid.Store(tid)
	f.view.told(rootID, "a", fileOut(10), false, false)
	h := fuse.InHeader{NodeId: rootID, Caller: fuse.Caller{Pid: tid}}
	var entry fuse.EntryOut
	requests := map[string]func() fuse.Status{
		"mknod": func() fuse.Status {
			return f.Mknod(nil, &fuse.MknodIn{InHeader: h, Mode: unix.S_IFREG}, "x", &entry)
		},
		"mkdir":   func() fuse.Status { return f.Mkdir(nil, &fuse.MkdirIn{InHeader: h}, "x", &entry) },
		"symlink": func() fuse.Status { return f.Symlink(nil, &h, "t", "x", &entry) },
		"link":    func() fuse.Status { return f.Link(nil, &fuse.LinkIn{InHeader: h, Oldnodeid: 10}, "x", &entry) },
		"create":  func() fuse.Status { return f.Create(nil, &fuse.CreateIn{InHeader: h}, "x", &fuse.CreateOut{}) },
		"unlink":  func() fuse.Status { return f.Unlink(nil, &h, "a") },
		"rmdir":   func() fuse.Status { return f.Rmdir(nil, &h, "a") },
		"rename":  func() fuse.Status { return f.Rename(nil, &fuse.RenameIn{InHeader: h, Newdir: rootID}, "a", "b") },
		"setattr": func() fuse.Status {
			return f.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: h}}, &fuse.AttrOut{})
		},
		"open": func() fuse.Status { return f.Open(nil, &fuse.OpenIn{InHeader: h}, &fuse.OpenOut{}) },
	}
	steps := map[string]*step{
		"without a step":  nil,
		"of another name": {op: opRemove, src: side{parent: rootID, name: "other"}},
		"of another kind": {op: opMake, dst: side{parent: rootID, name: "x"}, made: entryOf(11, unix.S_IFIFO, 1)},
	}
	for when, s := range steps {
		f.cur.Store(s)
		for what, ask := range requests {
			before := f.stats.Unexpected.Load()
			if st := ask(); st != fuse.EIO {
				t.Errorf("%s %s is answered %v", what, when, st)
			}
			if n := f.stats.Unexpected.Load() - before; n != 1 {
				t.Errorf("%s %s is counted %d times", what, when, n)
			}
			if s != nil && (!s.mismatch || s.done || s.used) {
				t.Errorf("%s %s leaves %+v", what, when, s)
			}
		}
	}
	expectName(t, f.view, rootID, "a", 10, 10)
	// The same requests of a guest process reach the file system.
	f.tid.Store(tid + 1)
	before := f.stats.Unexpected.Load()
	if st := f.Unlink(nil, &h, "a"); st != fuse.ENOSYS || f.stats.Unexpected.Load() != before {
		t.Errorf("a guest's unlink is answered %v", st)
	}
	// Nobody else finds the staging directory.
	if st := f.Lookup(nil, &h, f.staging, &entry); st != fuse.ENOENT {
		t.Errorf("the staging directory is looked up: %v", st)
	}
	h.NodeId = stagingID
	if st := f.Lookup(nil, &h, "1", &entry); st != fuse.ENOENT {
		t.Errorf("a name in the staging directory is looked up: %v", st)
	}
}
