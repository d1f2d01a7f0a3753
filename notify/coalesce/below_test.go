package coalesce

import (
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

// places is a tree of directories, each with a name of its own, by the one above: "" is the root, outside none.
type places map[string]string

const outside = "(outside)"

func (p places) path(dir string) string {
	parts := []string{}
	for dir != "" {
		if dir == outside {
			return outside
		}
		parts = append(parts, dir)
		dir = p[dir]
	}
	slices.Reverse(parts)
	return "/" + path.Join(parts...)
}

func (p places) below(dir, top string) bool {
	for ; dir != "" && dir != outside; dir = p[dir] {
		if dir == top {
			return true
		}
	}
	return false
}

// mover is a kernel and its watches: it makes directories move, and files in them, and writes the records of that.
type mover struct {
	rand   *rand.Rand
	at     places
	moved  map[string]bool // since the reader had told everything
	cookie uint32
	ops    int
	made   int
	// history has each directory's paths, with the number of the operation that led there.
	history map[string][]string
	raws    []notify.Raw
	// whole says that a record is of the same rename as the one before it.
	whole []bool
}

func dirObject(name string) notify.Object { return notify.Object{FS: 1, Type: 1, Handle: "/" + name} }

func (m *mover) lineage(dir string) *notify.Moved {
	var first *notify.Moved
	end := &first
	for ; dir != "" && dir != outside; dir = m.at[dir] {
		if m.moved[dir] {
			*end = &notify.Moved{Dir: dirObject(dir)}
			end = &(*end).Next
		}
	}
	return first
}

func (m *mover) put(whole bool, r notify.Raw) {
	m.raws, m.whole = append(m.raws, r), append(m.whole, whole)
}

// entry is a record about a name in dir.
func (m *mover) entry(whole bool, mask notify.Mask, dir, name string, cookie uint32) {
	m.put(whole, notify.Raw{Mask: mask, Dir: dirObject(dir), Name: name, Cookie: cookie, Moved: m.lineage(dir)})
}

func (m *mover) note() {
	for dir := range m.at {
		m.history[dir] = append(m.history[dir], m.at.path(dir))
	}
	m.history[""] = append(m.history[""], "/")
}

// step makes a file in a directory that is watched, or moves a directory.
func (m *mover) step() {
	m.ops++
	dirs := []string{""}
	for dir := range m.at {
		dirs = append(dirs, dir)
	}
	slices.Sort(dirs)
	any := func() string { return dirs[m.rand.IntN(len(dirs))] }
	if m.rand.IntN(3) > 0 {
		m.made++
		m.entry(false, notify.Create, any(), fmt.Sprintf("f%d-%d", m.ops, m.made), 0)
		m.note()
		return
	}
	dir := any()
	from, to := m.at[dir], any()
	if m.rand.IntN(3) == 0 {
		to = outside
	}
	if dir == "" || to != outside && m.at.below(to, dir) || to == from {
		m.note()
		return
	}
	m.cookie++
	cookie := m.cookie
	if from != outside {
		m.entry(false, notify.MovedFrom|notify.IsDir, from, dir, cookie)
		m.between(from, to, dir)
	}
	if to != outside {
		m.entry(from != outside, notify.MovedTo|notify.IsDir, to, dir, cookie)
		m.between(from, to, dir)
	}
	m.at[dir] = to
	m.moved[dir] = true
	m.put(true, notify.Raw{Mask: notify.MoveSelf | notify.IsDir, Object: dirObject(dir), Cookie: cookie})
	m.note()
}

// between makes a file elsewhere while a rename is under way.
func (m *mover) between(from, to, dir string) {
	other := ""
	for d := range m.at {
		if d != from && d != to && !m.at.below(d, dir) {
			other = max(other, d)
		}
	}
	if other == "" || m.rand.IntN(4) > 0 {
		return
	}
	m.made++
	m.entry(true, notify.Create, other, fmt.Sprintf("f%d-%d", m.ops, m.made), 0)
}

// splitsMoveIn reports whether the first n records end between a move in and what tells whose it was. Who reads just
// then can be told of it before the move out that came before it; see docs/semantics.md.
func (m *mover) splitsMoveIn(n int) bool {
	for _, r := range m.raws[:n] {
		told := func(o notify.Raw) bool { return isMoveSelf(&o) && o.Cookie == r.Cookie }
		if r.Mask&notify.MovedTo != 0 && !slices.ContainsFunc(m.raws[:n], told) {
			return true
		}
	}
	return false
}

// hearer resolves events as who keeps a table of directories does.
type hearer struct {
	t       *testing.T
	m       *mover
	at      places
	created map[string]bool
}

func (h *hearer) hear(ev *notify.Event) {
	dir := func(o notify.Object) string {
		if o.IsZero() {
			return outside
		}
		return strings.TrimPrefix(o.Handle, "/")
	}
	switch ev.Op {
	case notify.OpCreate:
		var op int
		fmt.Sscanf(ev.Name, "f%d", &op)
		d := dir(ev.Dir)
		key := d + "/" + ev.Name
		if h.created[key] {
			h.t.Errorf("%s is told twice", key)
		}
		h.created[key] = true
		// A later path is of a rename that was told before: nothing keeps two directories in order. An
		// older one is wrong.
		if got := h.at.path(d); got != outside && !slices.Contains(h.m.history[d][op-1:], got) {
			h.t.Errorf("a file that was made in %s is told in %s", h.m.history[d][op-1], got)
		}
	case notify.OpRename:
		name := max(ev.Name, ev.NewName)
		h.at[name] = dir(ev.NewDir)
	default:
		h.t.Errorf("unexpected %v", ev)
	}
}

// TestBelowMoves: while half a rename waits, what happens below the directory waits behind it, whatever the reader
// reads together. So nothing is told under a path that it did not have any more.
func TestBelowMoves(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		m := &mover{rand: r, at: places{}, moved: map[string]bool{}, history: map[string][]string{}}
		h := &hearer{t: t, m: m, at: places{}, created: map[string]bool{}}
		for name, above := range map[string]string{"a": "", "b": "", "c": "a", "d": "a", "e": "b", "g": "c"} {
			m.at[name], h.at[name] = above, above
		}
		c := New(Config{})
		now := time.Unix(1, 0)
		var events []notify.Event
		tell := func() {
			for i := range events {
				h.hear(&events[i])
			}
			events = events[:0]
		}
		for range 40 {
			m.step()
			for len(m.raws) > 0 && r.IntN(3) > 0 {
				n := 1 + r.IntN(len(m.raws))
				if m.splitsMoveIn(n) {
					continue
				}
				events = c.Push(events, m.raws[:n], now)
				m.raws, m.whole = m.raws[n:], m.whole[n:]
				tell()
				if len(m.raws) == 0 && c.Deadline().IsZero() {
					clear(m.moved)
				}
				pause := time.Duration(r.IntN(20)) * time.Microsecond
				if (len(m.raws) == 0 || !m.whole[0]) && r.IntN(2) == 0 {
					pause = time.Duration(r.IntN(3000)) * time.Microsecond
				}
				now = now.Add(pause)
				events = c.Flush(events, now)
				tell()
			}
		}
		events = c.Flush(c.Push(events, m.raws, now), now.Add(time.Hour))
		tell()
		if len(h.created) != m.made {
			t.Errorf("%d files were made, %d were told", m.made, len(h.created))
		}
		for d := range m.at {
			if m.at.path(d) != h.at.path(d) {
				t.Errorf("%s is at %s, told at %s", d, m.at.path(d), h.at.path(d))
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}
