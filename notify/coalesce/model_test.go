package coalesce

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/heraldfs/heraldfs/notify"
	"pgregory.net/rapid"
)

// model is a file system that says what the kernel would say of each change.
type model struct {
	tree   map[entry]notify.Object
	isDir  map[notify.Object]bool
	links  map[notify.Object]int
	dirs   []notify.Object // ever made, the root first
	zombie []notify.Raw    // unlinked entries whose file is still open
	next   int
	cookie uint32
	pid    int32

	fan    []notify.Raw   // what fanotify would queue, unmerged
	ino    []notify.Raw   // what inotify would queue
	events []notify.Event // what happened
}

func obj(n int) notify.Object { return notify.Object{FS: 1, Type: 1, Handle: strconv.Itoa(n)} }

func newModel() *model {
	m := &model{
		tree: map[entry]notify.Object{}, isDir: map[notify.Object]bool{}, links: map[notify.Object]int{}, next: 1,
	}
	root := m.fresh(true)
	m.dirs = append(m.dirs, root)
	return m
}

func (m *model) fresh(dir bool) notify.Object {
	o := obj(m.next)
	m.next++
	m.isDir[o] = dir
	return o
}

// self tells of a directory itself, as fanotify and inotify do.
func (m *model) self(op notify.Op, dir notify.Object) {
	r := notify.Raw{Mask: op.Mask() | notify.IsDir, Dir: dir, Name: ".", Pid: m.pid}
	m.fan = append(m.fan, r)
	ev := notify.Event{Op: op, IsDir: true, Dir: dir, Name: ".", Pid: m.pid}
	if op == notify.OpDeleteSelf {
		ev.Dir, ev.Name, ev.Object = notify.Object{}, "", dir
	} else {
		r.Name, r.Pid = "", 0
		m.ino = append(m.ino, r)
	}
	m.events = append(m.events, ev)
}

// one queues the same single-bit record in both queues, and its event.
func (m *model) one(op notify.Op, e entry, o notify.Object) {
	mask := op.Mask()
	if m.isDir[o] {
		mask |= notify.IsDir
	}
	r := notify.Raw{Mask: mask, Dir: e.dir, Name: e.name, Object: o, Pid: m.pid}
	m.fan = append(m.fan, r)
	ev := notify.Event{Op: op, IsDir: m.isDir[o], Dir: e.dir, Name: e.name, Object: o, Pid: m.pid}
	m.events = append(m.events, ev)
	if !e.dir.IsZero() {
		r.Object, r.Pid = notify.Object{}, 0
		m.ino = append(m.ino, r)
	}
}

func (m *model) moved(from, to entry, o notify.Object) {
	var mask notify.Mask
	if m.isDir[o] {
		mask = notify.IsDir
	}
	m.fan = append(m.fan, notify.Raw{
		Mask: notify.Rename | mask, Dir: from.dir, Name: from.name, NewDir: to.dir, NewName: to.name, Object: o, Pid: m.pid,
	})
	m.cookie++
	m.ino = append(m.ino,
		notify.Raw{Mask: notify.MovedFrom | mask, Dir: from.dir, Name: from.name, Cookie: m.cookie},
		notify.Raw{Mask: notify.MovedTo | mask, Dir: to.dir, Name: to.name, Cookie: m.cookie})
}

// dropLink tells what an unlink, a rmdir or a rename over it tells o itself.
func (m *model) dropLink(o notify.Object, over bool) {
	if m.isDir[o] {
		if over {
			m.self(notify.OpAttrib, o)
		}
		m.self(notify.OpDeleteSelf, o)
		return
	}
	m.one(notify.OpLinkCount, entry{}, o)
	if m.links[o]--; m.links[o] == 0 {
		m.one(notify.OpDeleteSelf, entry{}, o)
	}
}

func (m *model) create(e entry, dir bool) {
	if _, ok := m.tree[e]; ok {
		return
	}
	o := m.fresh(dir)
	m.tree[e] = o
	m.links[o] = 1
	if dir {
		m.dirs = append(m.dirs, o)
	}
	m.one(notify.OpCreate, e, o)
}

func (m *model) touch(e entry, op notify.Op) {
	o, ok := m.tree[e]
	switch {
	case !ok:
	case m.isDir[o] && op == notify.OpAttrib:
		m.self(op, o)
	case !m.isDir[o]:
		m.one(op, e, o)
	}
}

func (m *model) remove(e entry, keepOpen bool) {
	o, ok := m.tree[e]
	if !ok || m.isDir[o] && !m.empty(o) {
		return
	}
	m.dropLink(o, false)
	delete(m.tree, e)
	m.one(notify.OpDelete, e, o)
	if keepOpen && !m.isDir[o] {
		m.zombie = append(m.zombie, notify.Raw{Dir: e.dir, Name: e.name, Object: o})
	}
}

func (m *model) link(from, to entry) {
	o, ok := m.tree[from]
	if _, taken := m.tree[to]; !ok || taken || m.isDir[o] {
		return
	}
	m.one(notify.OpLinkCount, entry{}, o)
	m.tree[to] = o
	m.links[o]++
	m.one(notify.OpCreate, to, o)
}

func (m *model) rename(from, to entry, exchange bool) {
	o, ok := m.tree[from]
	victim, over := m.tree[to]
	switch {
	case !ok || o == victim || m.below(to.dir, o) || exchange && (!over || m.below(from.dir, victim)):
		return
	case exchange:
		m.tree[to], m.tree[from] = o, victim
		m.moved(from, to, o)
		m.moved(to, from, victim)
		m.events = append(m.events, notify.Event{
			Op: notify.OpExchange, IsDir: m.isDir[o], Dir: from.dir, Name: from.name,
			NewDir: to.dir, NewName: to.name, Object: o, Pid: m.pid,
			NewObject: victim, NewIsDir: m.isDir[victim],
		})
		return
	case over && (m.isDir[o] != m.isDir[victim] || m.isDir[victim] && !m.empty(victim)):
		return
	}
	delete(m.tree, from)
	m.tree[to] = o
	m.moved(from, to, o)
	m.events = append(m.events, notify.Event{
		Op: notify.OpRename, IsDir: m.isDir[o], Dir: from.dir, Name: from.name,
		NewDir: to.dir, NewName: to.name, Object: o, Pid: m.pid,
	})
	if over {
		m.dropLink(victim, true)
	}
}

func (m *model) empty(dir notify.Object) bool { return emptyIn(m.tree, dir) }

// below reports whether dir is o or inside it.
func (m *model) below(dir, o notify.Object) bool {
	for dir != o {
		up, ok := m.parent(dir)
		if !ok {
			return false
		}
		dir = up
	}
	return true
}

func (m *model) parent(dir notify.Object) (notify.Object, bool) {
	for e, o := range m.tree {
		if o == dir {
			return e.dir, true
		}
	}
	return notify.Object{}, false
}

// liveDirs lists the root and what hangs below it, in the order of creation.
func (m *model) liveDirs() []notify.Object {
	var live []notify.Object
	for _, d := range m.dirs {
		if m.below(d, m.dirs[0]) {
			live = append(live, d)
		}
	}
	return live
}

// features says which operations a run uses.
type features struct {
	links, dirs, exchange, open bool
	names                       int
	pids                        int32
}

// step performs one random operation.
func (m *model) step(t *rapid.T, f features) {
	dirs := m.liveDirs()
	place := func(label string) entry {
		d := rapid.IntRange(0, len(dirs)-1).Draw(t, label+"dir")
		return entry{dirs[d], string(rune('a' + rapid.IntRange(0, f.names-1).Draw(t, label)))}
	}
	m.pid = rapid.Int32Range(1, f.pids).Draw(t, "pid")
	e := place("at")
	switch op := rapid.IntRange(0, 15).Draw(t, "op"); op {
	case 0, 1, 2:
		m.create(e, f.dirs && op == 0)
	case 3, 4, 5:
		m.touch(e, [...]notify.Op{notify.OpModify, notify.OpAttrib, notify.OpCloseWrite}[op-3])
	case 6, 7, 8:
		m.remove(e, f.open && op == 6)
	case 9, 10, 11, 12:
		m.rename(e, place("to"), false)
	case 13:
		m.rename(e, place("to"), f.exchange)
	case 14:
		if f.links {
			m.link(e, place("to"))
		}
	case 15:
		if n := len(m.zombie); n > 0 {
			z := m.zombie[n-1]
			m.one(notify.OpModify, entry{z.Dir, z.Name}, z.Object)
		}
	}
}

// mergeQueue appends r to a fanotify queue as the kernel does: ORed into an
// equal record at most back records ago, else at its end. It reports whether r
// repeated what the older record said already.
func mergeQueue(queue []notify.Raw, r notify.Raw, back int) (q []notify.Raw, lost bool) {
	const kind = notify.Rename | notify.IsDir
	for i := len(queue) - 1; i >= 0 && len(queue)-i <= back; i-- {
		old := queue[i]
		if old.Mask&kind == r.Mask&kind && old.Pid == r.Pid && old.Dir == r.Dir && old.Name == r.Name &&
			old.NewDir == r.NewDir && old.NewName == r.NewName && old.Object == r.Object {
			lost = old.Mask|r.Mask == old.Mask
			queue[i].Mask |= r.Mask
			return queue, lost
		}
	}
	return append(queue, r), false
}

// replay carries events out on a tree. It returns the steps that were not possible.
func replay(tree map[entry]notify.Object, events []notify.Event) (odd []notify.Event) {
	gone := map[notify.Object]bool{}
	for _, ev := range events {
		from, to := entry{ev.Dir, ev.Name}, entry{ev.NewDir, ev.NewName}
		was, ok := tree[from]
		wrong := gone[ev.Dir] && ev.Op != notify.OpModify || gone[ev.NewDir]
		switch ev.Op {
		case notify.OpCreate:
			wrong = wrong || ok
			tree[from] = ev.Object
		case notify.OpDelete:
			wrong = wrong || was != ev.Object || ev.IsDir && !emptyIn(tree, was)
			gone[ev.Object] = ev.IsDir
			delete(tree, from)
		case notify.OpRename:
			wrong = wrong || was != ev.Object || !emptyIn(tree, tree[to])
			delete(tree, from)
			tree[to] = ev.Object
		case notify.OpExchange:
			wrong = wrong || was != ev.Object || tree[to].IsZero()
			tree[from], tree[to] = tree[to], tree[from]
		case notify.OpDeleteSelf:
			gone[ev.Object] = ev.IsDir
		}
		if wrong {
			odd = append(odd, ev)
		}
	}
	return odd
}

func emptyIn(tree map[entry]notify.Object, dir notify.Object) bool {
	for e := range tree {
		if e.dir == dir {
			return false
		}
	}
	return true
}

// verify makes up the differences of the names that events say to look at.
func verify(tree, truth map[entry]notify.Object, events []notify.Event) map[entry]bool {
	looked := map[entry]bool{}
	for _, ev := range events {
		if !ev.Verify {
			continue
		}
		for _, e := range []entry{{ev.Dir, ev.Name}, {ev.NewDir, ev.NewName}} {
			looked[e] = true
			if o, ok := truth[e]; ok {
				tree[e] = o
			} else {
				delete(tree, e)
			}
		}
	}
	return looked
}

func treeDiff(got, want map[entry]notify.Object) string {
	var diff []string
	for e, o := range want {
		if got[e] != o {
			diff = append(diff, fmt.Sprintf("%v/%s: have %v, want %v", e.dir.Handle, e.name, got[e].Handle, o.Handle))
		}
	}
	for e, o := range got {
		if _, ok := want[e]; !ok {
			diff = append(diff, fmt.Sprintf("%v/%s: have %v, want nothing", e.dir.Handle, e.name, o.Handle))
		}
	}
	slices.Sort(diff)
	return fmt.Sprint(diff)
}

func sameTree(a, b map[entry]notify.Object) bool { return maps.Equal(a, b) }

// bare strips what the model does not say.
func bare(ev notify.Event) notify.Event {
	ev.Verify, ev.Cookie = false, 0
	return ev
}

func show(events []notify.Event) string {
	var s string
	for _, ev := range events {
		v := ""
		if ev.Verify {
			v = " VERIFY"
		}
		s += fmt.Sprintf("  %s %s/%s -> %s/%s obj %s pid %d%s\n", ev.Op, ev.Dir.Handle, ev.Name, ev.NewDir.Handle, ev.NewName, ev.Object.Handle, ev.Pid, v)
	}
	return s
}

func showRaws(raws []notify.Raw) string {
	var s string
	for _, r := range raws {
		s += fmt.Sprintf("  {%s %s/%s -> %s/%s obj %s pid %d c%d}\n", r.Mask, r.Dir.Handle, r.Name, r.NewDir.Handle, r.NewName, r.Object.Handle, r.Pid, r.Cookie)
	}
	return s
}
