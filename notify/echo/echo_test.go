package echo

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/heraldfs/heraldfs/notify"
)

var _ notify.Ledger = (*Ledger)(nil)

var (
	dirA = notify.Object{FS: 1, Type: 1, Handle: "a"}
	dirB = notify.Object{FS: 1, Type: 1, Handle: "b"}
)

func raw(dir notify.Object, name string, m notify.Mask) *notify.Raw {
	return &notify.Raw{Dir: dir, Name: name, Mask: m}
}

func TestSwallowOnce(t *testing.T) {
	l := New(Options{})
	done := l.Expect(dirA, "f", notify.Create|notify.IsDir, notify.Attrib)
	for _, tc := range []struct {
		r    *notify.Raw
		want bool
	}{
		{raw(dirA, "g", notify.Create), false},
		{raw(dirB, "f", notify.Create), false},
		{raw(dirA, "f", notify.Delete), false},
		{raw(dirA, "f", notify.Create|notify.IsDir), true},
		{raw(dirA, "f", notify.Create|notify.IsDir), false},
		{raw(dirA, "f", notify.Attrib), true},
		{raw(dirA, "f", notify.Attrib), false},
	} {
		if got := l.Swallow(tc.r); got != tc.want {
			t.Errorf("Swallow(%v %s) = %v, want %v", tc.r.Mask, tc.r.Name, got, tc.want)
		}
	}
	done()
	done()
	if l.count != 0 || len(l.expected) != 0 || len(l.finished) != 0 {
		t.Errorf("left over: %d, %v, %v", l.count, l.expected, l.finished)
	}
}

func TestTicketsKeepUntilDrained(t *testing.T) {
	l := New(Options{})
	early := l.BeginRead()
	done := l.Expect(dirA, "f", notify.Modify, notify.Modify, notify.Modify)
	l.Drained(early)
	during := l.BeginRead()
	if !l.Swallow(raw(dirA, "f", notify.Modify)) {
		t.Error("an operation under way was forgotten")
	}
	done()
	l.Drained(during)
	if !l.Swallow(raw(dirA, "f", notify.Modify)) {
		t.Error("forgotten by a read that began before the operation ended")
	}
	l.Drained(l.BeginRead())
	if l.Swallow(raw(dirA, "f", notify.Modify)) {
		t.Error("a later host event was swallowed")
	}
}

func TestMergedMasks(t *testing.T) {
	l := New(Options{})
	l.Expect(dirA, "f", notify.Modify, notify.CloseWrite)
	r := raw(dirA, "f", notify.Create|notify.Modify)
	if l.Swallow(r) || r.Mask != notify.Create {
		t.Errorf("left %v, want CREATE", r.Mask)
	}
	if r := raw(dirA, "f", notify.CloseWrite); !l.Swallow(r) {
		t.Errorf("%v was not swallowed", r.Mask)
	}
	l.Expect(dirA, "x", notify.MovedFrom)
	mv := &notify.Raw{Mask: notify.Rename, Dir: dirA, Name: "x", NewDir: dirB, NewName: "y"}
	if l.Swallow(mv) {
		t.Error("half a rename was enough")
	}
	l.Expect(dirB, "y", notify.MovedTo)
	if !l.Swallow(mv) || l.Swallow(mv) {
		t.Error("a whole rename is swallowed once")
	}
}

func TestLimit(t *testing.T) {
	l := New(Options{Limit: 2})
	doneF := l.Expect(dirA, "f", notify.Modify)
	l.Expect(dirA, "g", notify.Modify)
	l.Expect(dirA, "h", notify.Modify)()
	if l.Swallow(raw(dirA, "h", notify.Modify)) {
		t.Error("recorded beyond the limit")
	}
	doneF()
	l.Expect(dirA, "i", notify.Modify)
	if l.Swallow(raw(dirA, "f", notify.Modify)) || !l.Swallow(raw(dirA, "i", notify.Modify)) {
		t.Error("the oldest finished operation had to make room")
	}
}

func TestBindForgets(t *testing.T) {
	l := New(Options{})
	done := l.Expect(dirA, "f", notify.Modify)
	l.Bind(func() uint64 { return 8 })
	done()
	l.At(0)
	if l.Swallow(raw(dirA, "f", notify.Modify)) {
		t.Error("swallowed by an operation that was announced for another queue")
	}
	l.Drained(l.BeginRead())
	if l.count != 0 {
		t.Errorf("count %d, want 0", l.count)
	}
}

// record is one entry of a model queue.
type record struct {
	name string
	mask notify.Mask
	pos  uint64
	// ours and others say who is in it: the kernel merges equal neighbours.
	ours, others int
}

// TestPositionsAgainstModel drives the Ledger with a queue that merges its last
// record as inotify does, a reader that stops anywhere, and operations of ours that
// begin, change and end in any order among the host's.
func TestPositionsAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 16
		var queue []record
		var ended uint64
		l := New(Options{})
		l.Bind(func() uint64 { return ended })
		type running struct {
			name string
			left []notify.Mask
			done func()
		}
		var ops []*running
		push := func(name string, m notify.Mask, ours bool) {
			if n := len(queue); n == 0 || queue[n-1].name != name || queue[n-1].mask != m {
				queue = append(queue, record{name: name, mask: m, pos: ended})
				ended += size
			}
			if ours {
				queue[len(queue)-1].ours++
			} else {
				queue[len(queue)-1].others++
			}
		}
		names := rapid.SampledFrom([]string{"f", "g"})
		masks := rapid.SampledFrom([]notify.Mask{notify.Modify, notify.Attrib, notify.CloseWrite})
		readOne := func() {
			r := queue[0]
			queue = queue[1:]
			l.At(r.pos)
			got := l.Swallow(raw(dirA, r.name, r.mask))
			switch {
			case r.ours > 0 && r.others == 0 && !got:
				t.Fatalf("echo %s %v at %d was passed on", r.name, r.mask, r.pos)
			case r.ours == 0 && got:
				t.Fatalf("host event %s %v at %d was swallowed", r.name, r.mask, r.pos)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(t *rapid.T) {
				if len(ops) > 3 {
					t.Skip("enough under way")
				}
				op := &running{name: names.Draw(t, "name"), left: rapid.SliceOfN(masks, 1, 4).Draw(t, "masks")}
				op.done = l.Expect(dirA, op.name, op.left...)
				ops = append(ops, op)
			},
			"change": func(t *rapid.T) {
				if len(ops) == 0 {
					t.Skip("nothing under way")
				}
				op := ops[rapid.IntRange(0, len(ops)-1).Draw(t, "op")]
				if len(op.left) == 0 {
					t.Skip("all changed")
				}
				m := op.left[0]
				op.left = op.left[1:]
				push(op.name, m, true)
			},
			"end": func(t *rapid.T) {
				if len(ops) == 0 {
					t.Skip("nothing under way")
				}
				i := rapid.IntRange(0, len(ops)-1).Draw(t, "op")
				op := ops[i]
				for _, m := range op.left {
					push(op.name, m, true)
				}
				op.done()
				ops = append(ops[:i], ops[i+1:]...)
			},
			"host": func(t *rapid.T) {
				name, m := names.Draw(t, "name"), masks.Draw(t, "mask")
				// What is ambiguous by nature is left out: see the package comment.
				for _, op := range ops {
					if op.name == name {
						t.Skip("inside a window")
					}
				}
				push(name, m, false)
			},
			"read": func(t *rapid.T) {
				if len(queue) == 0 {
					t.Skip("empty")
				}
				readOne()
			},
			"drain": func(t *rapid.T) {
				ticket := l.BeginRead()
				for len(queue) > 0 {
					readOne()
				}
				l.Drained(ticket)
				if len(ops) == 0 && (l.count != 0 || len(l.expected) != 0 || len(l.finished) != 0) {
					t.Fatalf("all read and done, left over: %d %v", l.count, l.expected)
				}
			},
		})
	})
}
