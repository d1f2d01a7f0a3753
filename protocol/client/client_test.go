package client

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heraldfs/heraldfs/protocol"
)

var errEnd = errors.New("the test has seen enough")

// script is a server that plays one part for each connection, and notes what was asked.
type script struct {
	t     *testing.T
	parts []func(*protocol.Conn)
	asked []protocol.Subscribe
}

func (s *script) dial(ctx context.Context) (net.Conn, error) {
	if len(s.parts) == 0 {
		return nil, errEnd
	}
	part := s.parts[0]
	s.parts = s.parts[1:]
	a, b := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := protocol.Server(ctx, b, protocol.Options{})
		if err != nil {
			s.t.Error(err)
			return
		}
		defer c.Close()
		m, err := c.Read()
		if err != nil {
			s.t.Error(err)
			return
		}
		s.asked = append(s.asked, *m.(*protocol.Subscribe))
		part(c)
	}()
	s.t.Cleanup(func() { a.Close(); <-done })
	return a, nil
}

func stream(b byte) []byte { return slices.Repeat([]byte{b}, protocol.StreamSize) }

func subscribed(id byte, next uint64) *protocol.Subscribed {
	return &protocol.Subscribed{Stream: stream(id), Next: next}
}

func events(first, last uint64) *protocol.Events { return &protocol.Events{First: first, Last: last} }

// say writes messages and takes the acks of those that have one.
func say(c *protocol.Conn, list ...protocol.Message) {
	for _, m := range list {
		if c.Write(m) != nil {
			return
		}
		if _, ok := m.(*protocol.Subscribed); ok {
			continue
		}
		if _, err := c.Read(); err != nil {
			return
		}
	}
}

// notes is a Handler.
type notes struct {
	ranges   [][2]uint64
	gaps     []protocol.Reason
	failures []error
	fail     int // the range at which it fails, counted from 1
}

func (n *notes) Connected(*protocol.Subscribed) error { return nil }
func (n *notes) Disconnected(err error, _ time.Duration) error {
	if errors.Is(err, errEnd) {
		return errEnd
	}
	n.failures = append(n.failures, err)
	return nil
}

func (n *notes) Events(m *protocol.Events) error {
	if n.fail--; n.fail == 0 {
		return errEnd
	}
	n.ranges = append(n.ranges, [2]uint64{m.First, m.Last})
	return nil
}

func (n *notes) Gap(g *protocol.Gap) error {
	n.gaps = append(n.gaps, g.Reason)
	n.ranges = append(n.ranges, [2]uint64{g.First, g.Last})
	return nil
}

// play runs a subscriber against the parts until they are over.
func play(t *testing.T, since *Position, n *notes, parts ...func(*protocol.Conn)) *script {
	t.Helper()
	s := &script{t: t, parts: parts}
	err := Run(t.Context(), Options{Dial: s.dial, Since: since, MinBackoff: time.Microsecond, MaxBackoff: time.Microsecond,
		Subscribe: protocol.Subscribe{Window: 4}}, n)
	if !errors.Is(err, errEnd) {
		t.Fatalf("got %v, want the end of the script", err)
	}
	return s
}

// froms are the positions that were asked for; -1 is none.
func (s *script) froms() []int {
	var list []int
	for _, sub := range s.asked {
		if sub.Resume {
			list = append(list, int(sub.From))
		} else {
			list = append(list, -1)
		}
	}
	return list
}

func check(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: %s", what, diff)
	}
}

func TestResumesWhereItWas(t *testing.T) {
	n := &notes{}
	s := play(t, nil, n,
		func(c *protocol.Conn) { say(c, subscribed(1, 11)) },                 // nothing came
		func(c *protocol.Conn) { say(c, subscribed(1, 11), events(11, 20)) }, // then something
		func(c *protocol.Conn) { say(c, subscribed(1, 21), events(21, 21)) })
	check(t, "positions", s.froms(), []int{-1, 10, 20})
	check(t, "ranges", n.ranges, [][2]uint64{{11, 20}, {21, 21}})
	check(t, "stream", s.asked[2].Stream, stream(1))
}

// TestBrokenSequence: a hole, a repetition or a range backwards is not handed on.
func TestBrokenSequence(t *testing.T) {
	for name, bad := range map[string]protocol.Message{
		"a hole": events(7, 8), "a repetition": events(5, 8), "backwards": events(6, 3), "a gap elsewhere": &protocol.Gap{First: 9, Last: 9},
	} {
		t.Run(name, func(t *testing.T) {
			n := &notes{}
			s := play(t, &Position{Stream: stream(1), Seq: 3}, n,
				func(c *protocol.Conn) { say(c, subscribed(1, 4), events(4, 5), bad) },
				func(c *protocol.Conn) { say(c, subscribed(1, 6), events(6, 9)) })
			check(t, "positions", s.froms(), []int{3, 5})
			check(t, "ranges", n.ranges, [][2]uint64{{4, 5}, {6, 9}})
			if len(n.failures) == 0 || !errors.Is(n.failures[0], protocol.ErrSequence) {
				t.Errorf("failures %v, want ErrSequence", n.failures)
			}
		})
	}
	n := &notes{}
	play(t, &Position{Stream: stream(1), Seq: 3}, n, func(c *protocol.Conn) { say(c, subscribed(1, 9)) })
	if len(n.failures) == 0 || !errors.Is(n.failures[0], protocol.ErrSequence) {
		t.Errorf("continued elsewhere: %v, want ErrSequence", n.failures)
	}
}

// TestAnotherStream: the gap that tells of it is owed until it has come, over a break too.
func TestAnotherStream(t *testing.T) {
	n := &notes{}
	s := play(t, &Position{Stream: stream(1), Seq: 50}, n,
		func(c *protocol.Conn) { say(c, subscribed(2, 1)) },
		func(c *protocol.Conn) {
			say(c, subscribed(2, 1), &protocol.Gap{First: 1, Last: 7, Reason: protocol.GapStream})
		},
		func(c *protocol.Conn) { say(c, subscribed(2, 8), events(8, 8)) })
	check(t, "positions", s.froms(), []int{50, 50, 7})
	check(t, "streams", [][]byte{s.asked[1].Stream, s.asked[2].Stream}, [][]byte{stream(1), stream(2)})
	check(t, "gaps", n.gaps, []protocol.Reason{protocol.GapStream})
	check(t, "ranges", n.ranges, [][2]uint64{{1, 7}, {8, 8}})
}

// TestHandlerFails: what it refused is not acknowledged.
func TestHandlerFails(t *testing.T) {
	n := &notes{fail: 2}
	acks := make(chan uint64, 8)
	play(t, &Position{}, n, func(c *protocol.Conn) {
		defer close(acks)
		_ = c.Write(subscribed(1, 1))
		_ = c.Write(events(1, 1))
		_ = c.Write(events(2, 2))
		for {
			m, err := c.Read()
			if err != nil {
				return
			}
			acks <- m.(*protocol.Ack).Seq
		}
	})
	check(t, "ranges", n.ranges, [][2]uint64{{1, 1}})
	var got []uint64
	for seq := range acks {
		got = append(got, seq)
	}
	check(t, "acks", got, []uint64{1})
}

// TestRudeServers: who does not keep to the protocol is left.
func TestRudeServers(t *testing.T) {
	for name, part := range map[string]func(*protocol.Conn){
		"events before the subscription": func(c *protocol.Conn) { say(c, events(1, 1)) },
		"subscribed twice":               func(c *protocol.Conn) { say(c, subscribed(1, 1), subscribed(1, 1)) },
		"no stream":                      func(c *protocol.Conn) { say(c, &protocol.Subscribed{Next: 1}) },
		"no sequence":                    func(c *protocol.Conn) { say(c, subscribed(1, 0)) },
	} {
		t.Run(name, func(t *testing.T) {
			n := &notes{}
			play(t, nil, n, part)
			if len(n.ranges) > 0 || len(n.failures) != 1 ||
				!errors.Is(n.failures[0], protocol.ErrProtocol) && !errors.Is(n.failures[0], protocol.ErrSequence) {
				t.Errorf("ranges %v, failures %v", n.ranges, n.failures)
			}
		})
	}
}

// TestPermanent: what another attempt would not change is returned.
func TestPermanent(t *testing.T) {
	for code, want := range map[protocol.Code]error{
		protocol.CodeNoRoot: protocol.ErrNoRoot, protocol.CodeAuth: protocol.ErrAuth, protocol.CodeVersion: protocol.ErrVersion,
	} {
		s := &script{t: t, parts: []func(*protocol.Conn){func(c *protocol.Conn) { c.Refuse(&protocol.Error{Code: code}) }}}
		if err := Run(t.Context(), Options{Dial: s.dial}, &notes{}); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	n := &notes{}
	play(t, nil, n, func(c *protocol.Conn) { c.Refuse(&protocol.Error{Code: protocol.CodeBusy}) })
	if len(n.failures) != 1 || !errors.Is(n.failures[0], protocol.ErrBusy) {
		t.Errorf("failures %v, want ErrBusy once", n.failures)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := &script{t: t, parts: []func(*protocol.Conn){func(c *protocol.Conn) {
		_ = c.Write(subscribed(1, 1))
		cancel()
		_, _ = c.Read()
	}}}
	if err := Run(ctx, Options{Dial: s.dial}, &notes{}); err != nil {
		t.Errorf("got %v, want none", err)
	}
}

// TestSilentServer: a server that says nothing is left although its connection stands; one that answers pings is not.
func TestSilentServer(t *testing.T) {
	n := &notes{}
	s := &script{t: t, parts: []func(*protocol.Conn){
		func(c *protocol.Conn) {
			_ = c.Write(subscribed(1, 1))
			for range 40 { // longer than the client is patient
				if _, err := c.Read(); err != nil {
					t.Errorf("one that answers was left: %v", err)
					return
				}
			}
			_ = c.Write(events(1, 1))
			for {
				if m, err := c.Read(); err != nil || m.Type() == protocol.TypeAck {
					return
				}
			}
		},
		func(c *protocol.Conn) {
			_ = c.Write(subscribed(1, 2))
			_, _ = io.Copy(io.Discard, c.NetConn())
		},
	}}
	err := Run(t.Context(), Options{Dial: s.dial, MinBackoff: time.Microsecond, MaxBackoff: time.Microsecond,
		Conn: protocol.Options{IdleTimeout: 300 * time.Millisecond}, Ping: 10 * time.Millisecond}, n)
	if !errors.Is(err, errEnd) {
		t.Errorf("got %v, want the end of the script", err)
	}
	check(t, "ranges", n.ranges, [][2]uint64{{1, 1}})
	if len(n.failures) != 2 || !errors.Is(n.failures[1], os.ErrDeadlineExceeded) {
		t.Errorf("failures %v, want a silence", n.failures)
	}
}
