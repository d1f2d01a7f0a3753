package stream

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/client"
)

// stuck subscribes and then never reads again.
func stuck(t *testing.T, b *bed, sub protocol.Subscribe) *protocol.Conn {
	t.Helper()
	nc, err := b.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := protocol.Client(t.Context(), nc, protocol.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.Write(&sub); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestSlowAndStuck: beside one that waits and one that is stuck, a third gets everything.
// What the slow one gets in the end is the last state of each name.
func TestSlowAndStuck(t *testing.T) {
	const rounds, files = 100, 200
	b := newBed(t, Options{JournalEvents: 8000}, ServerOptions{})
	fast, slow := newCollector(), newCollector()
	release := make(chan struct{})
	open := sync.OnceFunc(func() { close(release) })
	t.Cleanup(open)
	slow.hold = func() { <-release }
	sub := protocol.Subscribe{Window: 2}
	stuckConn := stuck(t, b, sub)
	start(t, client.Options{Dial: b.dial, Subscribe: never(), Since: fromStart()}, fast)
	start(t, client.Options{Dial: b.dial, Subscribe: sub, Since: fromStart()}, slow)
	slow.wait(t, "the slow one's connection", func() bool { return slow.connected > 0 })

	for round := range rounds {
		var batch []Record
		for i := range files {
			r := modify("d", fmt.Sprint("f", i))
			if i == 0 {
				r = Record{Op: protocol.OpRename, From: protocol.Place{Dir: "d", Name: fmt.Sprint("r", round)},
					To: protocol.Place{Dir: "d", Name: fmt.Sprint("r", round+1)}}
			}
			batch = append(batch, r)
		}
		b.st.Publish(batch)
		// The fast one keeps pace only if it is not pushed off the small journal by the test itself.
		fast.waitLast(t, uint64((round+1)*files))
	}
	fast.exact(t, 1, rounds*files)

	open()
	slow.waitLast(t, rounds*files)
	slow.mu.Lock()
	defer slow.mu.Unlock()
	if len(slow.gaps) > 0 {
		t.Errorf("gaps: %+v", slow.gaps)
	}
	if n := len(slow.events); n > rounds*files/2 || n < files+rounds-1 {
		t.Errorf("%d events of %d: not folded, or too much", n, rounds*files)
	}
	renames, lastOf := 0, make(map[string]uint64)
	for _, ev := range slow.events {
		if ev.Op == protocol.OpRename {
			if want := fmt.Sprint("r", renames); ev.From.Name != want {
				t.Fatalf("rename of %s, want %s: one is missing", ev.From.Name, want)
			}
			renames++
		}
		lastOf[ev.From.Name] = ev.Seq
	}
	if renames != rounds {
		t.Errorf("%d renames, want %d", renames, rounds)
	}
	for i := 1; i < files; i++ {
		if want := uint64((rounds-1)*files + i + 1); lastOf[fmt.Sprint("f", i)] != want {
			t.Errorf("f%d: last %d, want %d", i, lastOf[fmt.Sprint("f", i)], want)
		}
	}
	// The stuck one was neither given up nor anybody's problem; it can still go on.
	if m, err := stuckConn.Read(); err != nil {
		t.Errorf("stuck one: %v, %v", m, err)
	}
}

// TestBacklogBound: names that are all different cannot be folded; beyond the bound there is a
// gap with the directory that they are in, and then it goes on.
func TestBacklogBound(t *testing.T) {
	b := newBed(t, Options{JournalEvents: 1000, BacklogEvents: 500}, ServerOptions{})
	slow := newCollector()
	release := make(chan struct{})
	open := sync.OnceFunc(func() { close(release) })
	t.Cleanup(open)
	slow.hold = func() { <-release }
	start(t, client.Options{Dial: b.dial, Subscribe: protocol.Subscribe{Window: 1}, Since: fromStart()}, slow)
	slow.wait(t, "a connection", func() bool { return slow.connected > 0 })
	const events = 20000
	for i := 1; i <= events; i += 50 {
		var batch []Record
		for k := i; k < i+50; k++ {
			batch = append(batch, modify("top/sub"+fmt.Sprint(k%3), fmt.Sprint("f", k)))
		}
		b.st.Publish(batch)
	}
	// What it holds at most: the backlog and the journal.
	if s := b.st.Stats(); s.BacklogBytes > 4*int64(s.JournalBytes) {
		t.Errorf("backlog of %d bytes", s.BacklogBytes)
	}
	open()
	slow.waitLast(t, events)
	publish(b.st, events+1, events+10)
	slow.waitLast(t, events+10)
	slow.mu.Lock()
	defer slow.mu.Unlock()
	if len(slow.gaps) == 0 || len(slow.events) == 0 {
		t.Fatalf("%d gaps, %d events", len(slow.gaps), len(slow.events))
	}
	covered := uint64(len(slow.events))
	for _, g := range slow.gaps {
		covered += g.Last - g.First + 1
		switch {
		case g.Reason == protocol.GapBacklog && (g.Scope == "top" || g.Scope == ""), g.Reason == protocol.GapJournal && g.Scope == "":
		default:
			t.Errorf("gap %+v", g)
		}
	}
	if covered != events+10 {
		t.Errorf("events and gaps cover %d of %d", covered, events+10)
	}
}

// TestGapScope: what is dropped from a backlog is told with the directory that holds it all.
func TestGapScope(t *testing.T) {
	st, err := Open(Options{JournalEvents: 1000, BacklogEvents: 100})
	if err != nil {
		t.Fatal(err)
	}
	s := &session{st: st, filter: &filter{mask: protocol.OpModify.Notify().Mask()}, window: 10, wake: make(chan struct{}, 1)}
	s.moveLocked(1)
	var batch []Record
	for i := range 101 {
		batch = append(batch, modify(fmt.Sprint("top/sub/x", i%3), fmt.Sprint("f", i)))
	}
	st.Publish(batch)
	s.absorb()
	st.Publish([]Record{modify("other", "f"), modify("top/sub", "g")})
	s.absorb()
	g, ok := s.next(false).(*protocol.Gap)
	if want := (protocol.Gap{First: 1, Last: 101, Scope: "top/sub", Reason: protocol.GapBacklog}); !ok || *g != want {
		t.Fatalf("got %+v, want %+v", g, want)
	}
	m, ok := s.next(false).(*protocol.Events)
	if !ok || m.First != 102 || m.Last != 103 || len(m.Raw) != 2 {
		t.Fatalf("after the gap: %+v", m)
	}
	if n := st.backlogs.Load(); n != 0 {
		t.Errorf("%d bytes counted for nothing", n)
	}
}

// TestPublishDoesNotWait: with nobody reading, publishing goes on as with nobody there.
func TestPublishDoesNotWait(t *testing.T) {
	b := newBed(t, Options{JournalEvents: 2000}, ServerOptions{})
	for range 20 {
		stuck(t, b, protocol.Subscribe{Window: 1})
	}
	done := make(chan struct{})
	go func() {
		publish(b.st, 1, 50000)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("publishing waits for subscribers")
	}
	if n := len(b.st.Stats().Subscribers); n != 20 {
		t.Errorf("%d subscribers left", n)
	}
}

// TestManySubscribers: 500 on one server, each gets everything.
func TestManySubscribers(t *testing.T) {
	const subscribers, events = 500, 300
	b := newBed(t, Options{}, ServerOptions{})
	all := make([]*collector, subscribers)
	for i := range all {
		all[i] = newCollector()
		start(t, client.Options{Dial: b.dial, Subscribe: never(), Since: fromStart()}, all[i])
	}
	for i := 1; i <= events; i += 10 {
		publish(b.st, i, i+9)
	}
	for _, c := range all {
		c.waitLast(t, events)
		c.exact(t, 1, events)
	}
}

// TestStuckIsGivenUp: who takes nothing for too long is disconnected, and his place is free.
func TestStuckIsGivenUp(t *testing.T) {
	b := newBed(t, Options{}, ServerOptions{MaxSubscribers: 1,
		Conn: protocol.Options{IdleTimeout: 30 * time.Millisecond, WriteTimeout: 30 * time.Millisecond}})
	stuck(t, b, protocol.Subscribe{Window: 1})
	c := newCollector()
	start(t, client.Options{Dial: b.dial, Since: fromStart()}, c)
	c.wait(t, "the place of the stuck one", func() bool { return c.connected > 0 })
	publish(b.st, 1, 10)
	c.waitLast(t, 10)
}
