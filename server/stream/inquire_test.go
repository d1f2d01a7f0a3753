package stream

import (
	"errors"
	"net"
	"testing"

	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/client"
)

// TestInquire: who may ask gets the document, even with all places taken; a server that does not tell
// says so to one who asks all the same.
func TestInquire(t *testing.T) {
	allowed := true
	b := newBed(t, Options{}, ServerOptions{MaxSubscribers: 1, Status: func(net.Conn) ([]byte, error) {
		if !allowed {
			return nil, protocol.ErrForbidden
		}
		return []byte(`{"a":1}`), nil
	}})
	c := newCollector()
	start(t, client.Options{Dial: b.dial}, c)
	c.wait(t, "a connection", func() bool { return c.connected > 0 })
	if doc, err := client.Inquire(t.Context(), client.Options{Dial: b.dial}); err != nil || string(doc) != `{"a":1}` {
		t.Errorf("got %s, %v", doc, err)
	}
	allowed = false
	if _, err := client.Inquire(t.Context(), client.Options{Dial: b.dial}); !errors.Is(err, protocol.ErrForbidden) {
		t.Errorf("forbidden: %v", err)
	}

	b = newBed(t, Options{}, ServerOptions{})
	if _, err := client.Inquire(t.Context(), client.Options{Dial: b.dial}); !errors.Is(err, client.ErrNoStatus) {
		t.Errorf("a server without: %v", err)
	}
	nc, err := b.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := protocol.Client(t.Context(), nc, protocol.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Write(&protocol.Inquire{}); err != nil {
		t.Fatal(err)
	}
	if m, err := conn.Read(); !errors.Is(err, protocol.ErrForbidden) {
		t.Errorf("asked all the same: %v, %v", m, err)
	}
}

// TestStats: what happened is counted once, by what it was.
func TestStats(t *testing.T) {
	b := newBed(t, Options{JournalEvents: 100}, ServerOptions{})
	publish(b.st, 1, 1000)
	b.st.Publish([]Record{{Lost: protocol.GapOverflow}, {Op: 77}})
	c, counted := newCollector(), &client.Stats{}
	start(t, client.Options{Dial: b.dial, Subscribe: never(), Since: &client.Position{Stream: b.st.ID(), Seq: 10}}, counted.Count(c))
	c.waitLast(t, 1001)
	s := b.st.Stats()
	if s.Events[protocol.OpModify] != 1000 || s.Events[protocol.OpCreate] != 0 || s.Losses[protocol.GapOverflow] != 1 || s.Losses[protocol.GapRescan] != 0 {
		t.Errorf("published %v, %v", s.Events, s.Losses)
	}
	if s.Gaps[protocol.GapJournal] != 1 || s.Gaps[protocol.GapOverflow] != 1 || s.Subscriptions != 1 || s.Resumes != 1 {
		t.Errorf("%+v", s)
	}
	// The subscriber counts the same; of the last message it may not be through yet.
	if !counted.Connected.Load() || counted.Connects.Load() != 1 || counted.Failures.Load() != 0 || counted.Events.Load() != 99 || counted.Gaps[protocol.GapJournal].Load() != 1 {
		t.Errorf("subscriber: %d events", counted.Events.Load())
	}
	b.stop()
	c.wait(t, "the end", func() bool { return len(c.failures) > 0 })
	if counted.Connected.Load() || counted.Failures.Load() == 0 || counted.LastError() == "" || counted.Last.Load() != 1001 {
		t.Errorf("after the end: %v, %q, last %d", counted.Connected.Load(), counted.LastError(), counted.Last.Load())
	}
	if s.First != 902 || s.Head != 1001 || len(s.Subscribers) != 1 || s.DiskFailed {
		t.Errorf("%+v", s)
	}
}
