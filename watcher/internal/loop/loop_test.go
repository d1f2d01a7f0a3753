package loop

import (
	"context"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// tornQueue hands out one record at a time. It is readable as long as there are any, and the reader finds it empty after each.
type tornQueue struct {
	fd   int
	raws chan notify.Raw
	torn bool
}

func (q *tornQueue) Fd() int { return q.fd }

func (q *tornQueue) Read(dst []notify.Raw, keep func(*notify.Raw) bool) ([]notify.Raw, bool, error) {
	select {
	case r := <-q.raws:
		var b [8]byte
		_, err := unix.Read(q.fd, b[:])
		if keep(&r) {
			dst = append(dst, r)
		}
		return dst, true, err
	default:
		return dst, true, nil
	}
}

func (q *tornQueue) put(t *testing.T, r notify.Raw) {
	q.raws <- r
	if _, err := unix.Write(q.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Error(err)
	}
}

func (q *tornQueue) Torn(r *notify.Raw) bool {
	if q.torn && r.Name == "a" {
		// Its other half comes while the reader waits, and after what others do.
		q.raws <- notify.Raw{Mask: notify.Attrib, Dir: r.Dir, Name: "c", Object: notify.Object{FS: 1, Handle: "third"}}
		q.raws <- notify.Raw{Mask: notify.Rename, Dir: r.NewDir, Name: r.NewName, NewDir: r.Dir, NewName: r.Name, Object: notify.Object{FS: 1, Handle: "other"}}
		_, _ = unix.Write(q.fd, []byte{2, 0, 0, 0, 0, 0, 0, 0})
		return true
	}
	return false
}

// TestTornExchange lets the reader find the queue empty between the two records of an exchange.
func TestTornExchange(t *testing.T) {
	for _, torn := range []bool{true, false} {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK|unix.EFD_SEMAPHORE)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		q := &tornQueue{fd: fd, raws: make(chan notify.Raw, 4), torn: torn}
		l, err := New(Config{Queue: q})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		dir := notify.Object{FS: 1, Handle: "dir"}
		q.put(t, notify.Raw{Mask: notify.Rename, Dir: dir, Name: "a", NewDir: dir, NewName: "b", Object: notify.Object{FS: 1, Handle: "one"}})
		var got []notify.Op
		if err := l.Run(ctx, func(events []notify.Event) {
			for _, ev := range events {
				got = append(got, ev.Op)
			}
			if len(events) > 0 {
				cancel()
			}
		}); err != nil {
			t.Fatal(err)
		}
		want := []notify.Op{notify.OpRename}
		if torn {
			want = []notify.Op{notify.OpExchange, notify.OpAttrib}
		}
		if !slices.Equal(got, want) {
			t.Errorf("torn %v: told %v, want %v", torn, got, want)
		}
		l.Close()
	}
}

// TestPause: the queue is left alone longer and longer while all that comes is ours, and not at all after anything else.
func TestPause(t *testing.T) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK|unix.EFD_SEMAPHORE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	q := &tornQueue{fd: fd, raws: make(chan notify.Raw, 4)}
	const us = 7
	l, err := New(Config{Queue: q, DropPid: us})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	turn := func(pid int32) time.Duration {
		if pid != 0 {
			q.put(t, notify.Raw{Mask: notify.Modify, Name: "a", Pid: pid})
		}
		if _, _, _, err := l.turn(nil, nil); err != nil {
			t.Fatal(err)
		}
		return l.pause
	}
	var got []time.Duration
	for _, pid := range []int32{us, us, us, us, us, 0, us, us, us + 1, us} {
		got = append(got, turn(pid)/firstPause)
	}
	if want := []time.Duration{1, 2, 4, 8, 8, 0, 1, 2, 0, 1}; !slices.Equal(got, want) {
		t.Errorf("the queue is left alone for %v times the first pause, want %v", got, want)
	}
}

// TestSecond: only the first record of an exchange is one that another is waited for after.
func TestSecond(t *testing.T) {
	dir, other := notify.Object{FS: 1, Handle: "dir"}, notify.Object{FS: 1, Handle: "other"}
	to := notify.Raw{Mask: notify.Rename, Dir: dir, Name: "a", NewDir: other, NewName: "b"}
	back := notify.Raw{Mask: notify.Rename, Dir: other, Name: "b", NewDir: dir, NewName: "a"}
	another := notify.Raw{Mask: notify.Rename, Dir: dir, Name: "b", NewDir: other, NewName: "a"}
	raws := []notify.Raw{to, another, back, to, {Mask: notify.Create, Dir: dir, Name: "a"}, back}
	for i, want := range map[int]bool{0: false, 2: true, 3: false, 5: true} {
		if got := second(raws[:i], &raws[i]); got != want {
			t.Errorf("record %d is the second of an exchange: %v", i, got)
		}
	}
}
