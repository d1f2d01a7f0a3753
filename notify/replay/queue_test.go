package replay

import (
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

func newTestQueue(t testing.TB, limit int) *queue {
	t.Helper()
	q, err := newQueue(limit, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.ready.close)
	return q
}

func modify(n int) []notify.Event {
	events := make([]notify.Event, n)
	for i := range events {
		events[i] = notify.Event{Op: notify.OpModify, Seq: uint64(i + 1)}
	}
	return events
}

func TestQueueTakes(t *testing.T) {
	q := newTestQueue(t, 10)
	if err := errors.Join(q.put(modify(2), nil, false), q.put(modify(1), nil, true)); err != nil {
		t.Fatal(err)
	}
	w, err := q.wait()
	if err != nil {
		t.Fatal(err)
	}
	got, ok := q.take(nil, 0)
	if !ok || len(got.events) != 3 || !got.idle || len(got.waiters) != 1 {
		t.Fatalf("took %+v, %v", got, ok)
	}
	select {
	case <-w:
		t.Fatal("the waiter was told before the events were replayed")
	default:
	}
	tell(got.waiters, nil)
	if err := w.done(soon(t)); err != nil {
		t.Error(err)
	}
	// Events that come after the source was idle take that back.
	if err := errors.Join(q.put(nil, nil, true), q.put(modify(1), nil, false)); err != nil {
		t.Fatal(err)
	}
	if got, _ := q.take(nil, 0); got.idle || len(got.events) != 1 {
		t.Errorf("took %+v of a busy source", got)
	}
	if got, ok := q.take(nil, time.Millisecond); !ok || len(got.events) != 0 {
		t.Errorf("took %+v, %v of nothing", got, ok)
	}
}

// TestQueueIsBounded puts more than there is room for.
func TestQueueIsBounded(t *testing.T) {
	q := newTestQueue(t, 4)
	if err := q.put(modify(4), nil, false); err != nil {
		t.Fatal(err)
	}
	var in atomic.Bool
	second := make(chan error, 1)
	go func() {
		err := q.put(modify(2), nil, true)
		in.Store(true)
		second <- err
	}()
	for range 100 {
		runtime.Gosched()
	}
	if in.Load() || q.len() != 4 {
		t.Fatalf("a full queue took more: %d", q.len())
	}
	if got, _ := q.take(nil, 0); len(got.events) != 4 {
		t.Fatalf("took %d", len(got.events))
	}
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	if got, _ := q.take(nil, 0); len(got.events) != 2 || !got.idle {
		t.Errorf("took %+v", got)
	}
}

// TestQueueCloses ends a put that waits for room and a take that waits for events.
func TestQueueCloses(t *testing.T) {
	full, empty := newTestQueue(t, 1), newTestQueue(t, 1)
	if err := full.put(modify(1), nil, false); err != nil {
		t.Fatal(err)
	}
	put, took := make(chan error, 1), make(chan bool, 1)
	go func() { put <- full.put(modify(1), nil, false) }()
	go func() {
		_, ok := empty.take(nil, 0)
		took <- ok
	}()
	full.close()
	empty.close()
	empty.close()
	if err := <-put; !errors.Is(err, notify.ErrClosed) {
		t.Errorf("put into a closed queue: %v", err)
	}
	if <-took {
		t.Error("took something from a closed queue")
	}
	if _, err := full.wait(); !errors.Is(err, notify.ErrClosed) {
		t.Errorf("wait on a closed queue: %v", err)
	}
}

// TestQueueWakes hands events over one by one: a wake-up that is lost would hang here.
func TestQueueWakes(t *testing.T) {
	q := newTestQueue(t, 2)
	const n = 2000
	go func() {
		for range n {
			if q.put(modify(1), nil, false) != nil {
				return
			}
		}
	}()
	watchdog := time.AfterFunc(5*time.Second, q.close)
	defer watchdog.Stop()
	var spare []notify.Event
	for got := 0; got < n; {
		b, ok := q.take(spare, 0)
		if !ok {
			t.Fatalf("%d of %d events, and then nothing for 5 seconds", got, n)
		}
		got += len(b.events)
		spare = b.events
	}
}

// TestServant has jobs done by another goroutine, one after the other.
func TestServant(t *testing.T) {
	s, err := newServant()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for i := range 1000 {
		s.run(func() { n++ }) // not atomic: run orders it
		if n != i+1 {
			t.Fatalf("%d jobs done of %d", n, i+1)
		}
	}
	// A ring too many is no job.
	s.work.ring()
	s.done.ring()
	s.run(func() { n++ })
	if n != 1001 {
		t.Errorf("%d jobs done", n)
	}
	s.stop()
}

// TestServantPosts has jobs done that nobody waits for: in order, before any that is waited for, and
// all of them before the end. Not too many are kept.
func TestServantPosts(t *testing.T) {
	s, err := newServant()
	if err != nil {
		t.Fatal(err)
	}
	var did []int
	post := func(i int) { s.post(func() { did = append(did, i) }) }
	const jobs = 3*maxPosted + 5
	for i := range jobs {
		post(i)
		s.mu.Lock()
		waiting := len(s.jobs)
		s.mu.Unlock()
		if waiting > maxPosted {
			t.Fatalf("%d jobs wait", waiting)
		}
		if i%7 == 0 {
			s.flush()
		}
	}
	s.run(func() { did = append(did, jobs) })
	if len(did) != jobs+1 {
		t.Fatalf("%d jobs done of %d before the one that was waited for", len(did), jobs+1)
	}
	post(jobs + 1)
	s.await()
	if len(did) != jobs+2 {
		t.Error("what was posted was not waited for")
	}
	post(jobs + 2)
	s.stop()
	if len(did) != jobs+3 {
		t.Error("what was posted last was not done")
	}
	for i, n := range did {
		if i != n {
			t.Fatalf("job %d was done as number %d", n, i)
		}
	}
}
