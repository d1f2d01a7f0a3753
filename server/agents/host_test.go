package agents

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/replay"
	"github.com/heraldfs/heraldfs/protocol"
)

func TestMain(m *testing.M) { testenv.LeakMain(m) }

// bed is a Host that listens on a socket of its own.
type bed struct {
	t    *testing.T
	host *Host
	path string
}

func newBed(t *testing.T, o Options) *bed {
	t.Helper()
	b := &bed{t: t, path: t.TempDir() + "/s"}
	ln, err := net.Listen("unix", b.path)
	if err != nil {
		t.Fatal(err)
	}
	b.run(o, ln)
	return b
}

// run runs a Host on ln until the test ends.
func (b *bed) run(o Options, ln net.Listener) {
	t := b.t
	o.Listen = func(context.Context) (net.Listener, error) { return ln, nil }
	b.host = New(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.host.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// agent connects, as far as Attach.
func (b *bed) agent(token []byte) (*protocol.AgentLink, net.Conn) {
	b.t.Helper()
	nc, err := net.Dial("unix", b.path)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { nc.Close() })
	return b.attach(nc, token), nc
}

// attach opens an agent on nc.
func (b *bed) attach(nc net.Conn, token []byte) *protocol.AgentLink {
	b.t.Helper()
	link, err := protocol.OpenAgent(context.Background(), nc, protocol.Options{Agent: "test", Token: token})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := link.Write(&protocol.Attach{Tid: 7}); err != nil {
		b.t.Fatal(err)
	}
	return link
}

func (b *bed) wait() replay.Agent {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	a, err := b.host.Wait(ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	return a
}

// calls reads up to the next message of calls.
func calls(t *testing.T, link *protocol.AgentLink) *protocol.Calls {
	t.Helper()
	for {
		m, err := link.Read()
		if err != nil {
			t.Fatal(err)
		}
		if c, ok := m.(*protocol.Calls); ok {
			return c
		}
	}
}

var unlink = notify.Call{Op: notify.CallUnlink, Dir: notify.SlotRoot, Name: "f"}

// TestBatches: what was put off travels with the next call, and each error is told as whose it is.
func TestBatches(t *testing.T) {
	b := newBed(t, Options{Token: []byte("a token of a good length")})
	link, _ := b.agent([]byte("a token of a good length"))
	a := b.wait()
	answers := []protocol.Results{{Done: 3}, {Done: 2, Errno: uint32(unix.EBUSY)}, {Done: 1, Errno: uint32(unix.ESTALE)}}
	served := make(chan []int, 1)
	go func() {
		var sizes []int
		for _, r := range answers {
			c := calls(t, link)
			sizes = append(sizes, len(c.Calls))
			r.ID = c.ID
			if err := link.Write(&r); err != nil {
				t.Error(err)
			}
		}
		served <- sizes
	}()
	step := func() error {
		walk := notify.Call{Op: notify.CallWalk, Dir: notify.SlotRoot, Name: "d", Slot: 5}
		if err := errors.Join(a.Later(&walk), a.Later(&walk)); err != nil {
			t.Fatal(err)
		}
		c := unlink
		return a.Do(&c)
	}
	var earlier *notify.EarlierError
	if err := step(); err != nil {
		t.Errorf("all done: %v", err)
	}
	if err := step(); !errors.Is(err, unix.EBUSY) || errors.As(err, &earlier) {
		t.Errorf("the call's own error: %v", err)
	}
	if err := step(); !errors.Is(err, unix.ESTALE) || !errors.As(err, &earlier) || earlier.Op != notify.CallWalk {
		t.Errorf("an earlier call's error: %v", err)
	}
	if sizes := <-served; len(sizes) != 3 || sizes[0] != 3 || sizes[2] != 3 {
		t.Errorf("messages of %v calls, want 3 of 3", sizes)
	}
}

// TestHostile: an agent that lies, is silent, or says too much is left, and costs nothing but itself.
func TestHostile(t *testing.T) {
	for name, answer := range map[string]func(*protocol.AgentLink, net.Conn, *protocol.Calls){
		"silent": func(*protocol.AgentLink, net.Conn, *protocol.Calls) {},
		"gone":   func(_ *protocol.AgentLink, nc net.Conn, _ *protocol.Calls) { nc.Close() },
		"other id": func(l *protocol.AgentLink, _ net.Conn, c *protocol.Calls) {
			l.Write(&protocol.Results{ID: c.ID + 1, Done: 1})
		},
		"too many": func(l *protocol.AgentLink, _ net.Conn, c *protocol.Calls) {
			l.Write(&protocol.Results{ID: c.ID, Done: 9})
		},
		"both": func(l *protocol.AgentLink, _ net.Conn, c *protocol.Calls) {
			l.Write(&protocol.Results{ID: c.ID, Done: 1, Errno: 2})
		},
		"neither": func(l *protocol.AgentLink, _ net.Conn, c *protocol.Calls) { l.Write(&protocol.Results{ID: c.ID}) },
		"nonsense": func(_ *protocol.AgentLink, nc net.Conn, _ *protocol.Calls) {
			io.WriteString(nc, "GET / HTTP/1.1\r\n\r\n")
		},
		"big frame": func(_ *protocol.AgentLink, nc net.Conn, _ *protocol.Calls) { nc.Write([]byte{0, 0x0f, 0xff, 0xff}) },
		"attach without a thread": func(l *protocol.AgentLink, _ net.Conn, _ *protocol.Calls) {
			l.Write(&protocol.Attach{})
		},
		"twice": func(l *protocol.AgentLink, _ net.Conn, c *protocol.Calls) {
			l.Write(&protocol.Results{ID: c.ID + 7, Done: 1})
			l.Write(&protocol.Results{ID: c.ID, Done: 1})
		},
		"a command":  func(l *protocol.AgentLink, _ net.Conn, _ *protocol.Calls) { l.Write(&protocol.Calls{ID: 1}) },
		"hello anew": func(l *protocol.AgentLink, _ net.Conn, _ *protocol.Calls) { l.Write(&protocol.Hello{Version: 1}) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, Options{CallTimeout: 300 * time.Millisecond})
			link, nc := b.agent(nil)
			a := b.wait()
			ended := sendOne(t, a)
			answer(link, nc, calls(t, link))
			<-ended
			<-a.Done()
			c := unlink
			if err := a.Do(&c); !errors.Is(err, notify.ErrDetached) {
				t.Errorf("a call of an agent that is gone: %v", err)
			}
			// The next one is as welcome as ever.
			b.agent(nil)
			b.wait()
		})
	}
}

// sendOne has a make a call, which has to fail because the agent is gone, and says when it has.
func sendOne(t *testing.T, a replay.Agent) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		c := unlink
		if err := a.Do(&c); !errors.Is(err, notify.ErrDetached) {
			t.Errorf("the call: %v", err)
		}
	}()
	return done
}

// TestStale: an agent on a channel in which there is still something for the one before.
func TestStale(t *testing.T) {
	b := newBed(t, Options{})
	_, nc := b.agent(nil)
	first := b.wait()
	ended := sendOne(t, first)
	// The second agent opens the same channel; the calls for the first are still to be read.
	again, err := protocol.OpenAgent(context.Background(), nc, protocol.Options{Agent: "second"})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Write(&protocol.Attach{Tid: 8}); err != nil {
		t.Fatal(err)
	}
	<-ended
	<-first.Done()
	if second := b.wait(); second == first {
		t.Error("the second agent is the first")
	}
}
