package stream

import (
	"testing"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
)

// TestQuiet: who wants nothing of what happens is still told how far it has come, now and then and
// at each ping.
func TestQuiet(t *testing.T) {
	st := mustOpen(t, Options{})
	s := &session{st: st, filter: &filter{mask: notify.Create}, window: 3, wake: make(chan struct{}, 1)}
	s.moveLocked(1)
	publish(st, 1, 100)
	if m := s.next(false); m != nil {
		t.Fatalf("got %+v for nothing", m)
	}
	ranges := func(m protocol.Message, first, last uint64) {
		t.Helper()
		ev, ok := m.(*protocol.Events)
		if !ok || len(ev.Raw) > 0 || ev.First != first || ev.Last != last {
			t.Fatalf("got %+v, want an empty range %d to %d", m, first, last)
		}
	}
	ranges(s.next(true), 1, 100)
	if m := s.next(true); m != nil {
		t.Fatalf("got %+v with nothing new", m)
	}
	publish(st, 101, 101+2*quietSpan)
	m := s.next(false).(*protocol.Events)
	if m.First != 101 || m.Last < 100+quietSpan {
		t.Fatalf("range %d to %d after %d unwanted", m.First, m.Last, 2*quietSpan)
	}
}

// TestWindow: without acks no more than the window is on the way.
func TestWindow(t *testing.T) {
	st := mustOpen(t, Options{})
	s := &session{st: st, filter: &filter{mask: notify.DefaultMask}, window: 3, wake: make(chan struct{}, 1)}
	s.moveLocked(1)
	publish(st, 1, 10*batchEvents)
	var last uint64
	for i := range 3 {
		m, ok := s.next(false).(*protocol.Events)
		if !ok || m.First != last+1 {
			t.Fatalf("message %d: %+v", i, m)
		}
		last = m.Last
	}
	if m := s.next(true); m != nil {
		t.Fatalf("a fourth one: %+v", m)
	}
	s.acked(0)
	if m := s.next(false); m != nil {
		t.Fatal("an ack of nothing made room")
	}
	s.acked(last)
	if m, ok := s.next(false).(*protocol.Events); !ok || m.First != last+1 {
		t.Fatalf("after an ack: %+v", m)
	}
	if len(s.unacked) != 1 {
		t.Errorf("%d on the way, want 1", len(s.unacked))
	}
}
