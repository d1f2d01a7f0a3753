package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/client"
)

// patience bounds a wait for something that must happen.
const patience = 30 * time.Second

// bed is a stream and a server on a unix socket.
type bed struct {
	st   *Stream
	path string
	stop func()
}

func newBed(t testing.TB, o Options, so ServerOptions) *bed {
	t.Helper()
	st, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{st: st, path: filepath.Join(t.TempDir(), "s")}
	so.Streams = map[string]*Stream{"": st, "src": st}
	ln, err := net.Listen("unix", b.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := NewServer(so).Serve(ctx, ln); err != nil {
			t.Error(err)
		}
	})
	b.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(b.stop)
	return b
}

func (b *bed) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", b.path)
}

// publish adds modify records of files named by number, from 1, in batches.
func publish(st *Stream, from, to int) {
	var batch []Record
	for i := from; i <= to; i++ {
		batch = append(batch, modify("d", "f"+strconv.Itoa(i)))
		if len(batch) == 100 || i == to {
			st.Publish(batch)
			batch = batch[:0]
		}
	}
}

func modify(dir, name string) Record {
	return Record{Op: protocol.OpModify, From: protocol.Place{Dir: dir, Name: name}, Time: time.Unix(1790000000, 0)}
}

// collector is a Handler that remembers, and may be made to wait or to fail.
type collector struct {
	mu        sync.Mutex
	changed   chan struct{} // closed and replaced at each change
	events    []protocol.Event
	gaps      []protocol.Gap
	last      uint64
	connected int
	failures  []error
	stream    []byte

	hold func()                       // called before each Events, with no lock held
	fail func(*protocol.Events) error // may end Run
}

func newCollector() *collector { return &collector{changed: make(chan struct{})} }

func (c *collector) did(f func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
	return nil
}

func (c *collector) Connected(s *protocol.Subscribed) error {
	return c.did(func() { c.connected++; c.stream = s.Stream })
}

func (c *collector) Disconnected(err error, _ time.Duration) error {
	return c.did(func() { c.failures = append(c.failures, err) })
}

func (c *collector) Events(m *protocol.Events) error {
	if c.hold != nil {
		c.hold()
	}
	if c.fail != nil {
		if err := c.fail(m); err != nil {
			return err
		}
	}
	return c.did(func() { c.events = append(c.events, m.Events...); c.last = m.Last })
}

func (c *collector) Gap(g *protocol.Gap) error {
	return c.did(func() { c.gaps = append(c.gaps, *g); c.last = g.Last })
}

// wait returns when ok does, which is asked after each change.
func (c *collector) wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		c.mu.Lock()
		done, changed := ok(), c.changed
		c.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			c.mu.Lock()
			defer c.mu.Unlock()
			t.Fatalf("waited in vain for %s: %d events, %d gaps, last %d, %d connections, failures %v",
				what, len(c.events), len(c.gaps), c.last, c.connected, c.failures)
		}
	}
}

func (c *collector) waitLast(t testing.TB, seq uint64) {
	t.Helper()
	c.wait(t, fmt.Sprint("sequence ", seq), func() bool { return c.last >= seq })
}

// exact checks that each sequence from first to last came as one event, and nothing else came.
func (c *collector) exact(t testing.TB, first, last uint64) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.gaps) > 0 {
		t.Errorf("gaps: %+v", c.gaps)
	}
	if n := int(last - first + 1); len(c.events) != n {
		t.Errorf("%d events, want %d", len(c.events), n)
	}
	for i, ev := range c.events {
		if want := first + uint64(i); ev.Seq != want {
			t.Fatalf("event %d has sequence %d, want %d", i, ev.Seq, want)
		}
	}
}

// start runs a subscriber until the test ends or the returned function is called, which returns
// Run's error.
func start(t testing.TB, o client.Options, h client.Handler) (stop func() error) {
	t.Helper()
	if o.MinBackoff == 0 {
		o.MinBackoff, o.MaxBackoff = time.Millisecond, 5*time.Millisecond
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx, o, h) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	return stop
}

func fromStart() *client.Position { return &client.Position{} }

func never() protocol.Subscribe { return protocol.Subscribe{Compact: protocol.CompactNever} }

func TestMain(m *testing.M) {
	if dir := os.Getenv("STREAM_TEST_SERVER"); dir != "" {
		serveUntilKilled(dir)
		return
	}
	os.Exit(m.Run())
}

var errStop = errors.New("stopped by the test")

func names(events []protocol.Event) []string {
	var list []string
	for _, ev := range events {
		s := ev.Op.String() + " " + ev.From.Path()
		if ev.To.Known() {
			s += " " + ev.To.Path()
		}
		list = append(list, s)
	}
	return list
}

func equalNames(t testing.TB, got []protocol.Event, want ...string) {
	t.Helper()
	if !slices.Equal(names(got), want) {
		t.Errorf("got %q\nwant %q", names(got), want)
	}
}
