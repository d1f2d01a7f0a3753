package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/client"
)

// TestResumeThroughCuts: a link that breaks all the time loses nothing and doubles nothing.
func TestResumeThroughCuts(t *testing.T) {
	const events, cuts = 20000, 40
	b := newBed(t, Options{}, ServerOptions{})
	p := newProxy(t, 7, cuts, 40<<10, b.dial)
	c := newCollector()
	start(t, client.Options{Dial: p.connect, Subscribe: never(), Since: fromStart()}, c)
	publish(b.st, 1, events)
	c.waitLast(t, events)
	c.exact(t, 1, events)
	if c.connected < 5 {
		t.Errorf("only %d connections: the test cuts too little", c.connected)
	}
	for i, ev := range c.events {
		if want := fmt.Sprint("f", i+1); ev.From.Name != want || ev.From.Dir != "d" {
			t.Fatalf("event %d is %v, want %s", i, ev.From, want)
		}
	}
}

// TestSubscriberRestarts: a subscriber that dies anywhere and remembers its position.
func TestSubscriberRestarts(t *testing.T) {
	const events = 10000
	b := newBed(t, Options{}, ServerOptions{})
	publish(b.st, 1, events)
	rng := rand.New(rand.NewPCG(3, 3))
	c := newCollector()
	pos := fromStart()
	runs := 0
	for c.last < events {
		runs++
		budget := 1 + rng.IntN(6)
		c.fail = func(*protocol.Events) error {
			if budget--; budget < 0 {
				return errStop
			}
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- client.Run(ctx, client.Options{Dial: b.dial, Subscribe: never(), Since: pos}, c)
		}()
		select {
		case err := <-done:
			if !errors.Is(err, errStop) {
				t.Fatalf("got %v, want the handler's error", err)
			}
		case <-allOf(c, events):
			cancel()
			<-done
		case <-time.After(patience):
			t.Fatal("waited in vain")
		}
		cancel()
		pos = &client.Position{Stream: c.stream, Seq: c.last}
	}
	c.exact(t, 1, events)
	if runs < 3 {
		t.Errorf("only %d runs", runs)
	}
}

// allOf is closed when c has everything up to seq.
func allOf(c *collector, seq uint64) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		for {
			c.mu.Lock()
			last, changed := c.last, c.changed
			c.mu.Unlock()
			if last >= seq {
				close(done)
				return
			}
			select {
			case <-changed:
			case <-time.After(patience):
				return
			}
		}
	}()
	return done
}

// serveUntilKilled is a server in a process of its own: it publishes without pause.
func serveUntilKilled(dir string) {
	st, err := Open(Options{Dir: filepath.Join(dir, "journal")})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	st.Ready()
	sock := filepath.Join(dir, "s")
	_ = os.Remove(sock)
	ln, err := net.Listen("unix", sock)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go func() {
		for i := 1; i <= 200000; i += 10 {
			var batch []Record
			for k := i; k < i+10; k++ {
				batch = append(batch, modify("d", fmt.Sprintf("%d-%d", os.Getpid(), k)))
			}
			st.Publish(batch)
			if i%1000 == 1 {
				<-time.After(time.Millisecond) // a pace, nothing waits for it
			}
		}
	}()
	_ = NewServer(ServerOptions{Streams: map[string]*Stream{"": st}}).Serve(context.Background(), ln)
}

// TestServerKilled: the server is killed in the middle of writing, and continues from its
// journal. Each sequence arrives once; each restart is a gap, and the only kind of gap.
func TestServerKilled(t *testing.T) {
	const kills = 4
	dir := t.TempDir()
	dial := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(dir, "s"))
	}
	c := newCollector()
	start(t, client.Options{Dial: dial, Subscribe: never(), Since: fromStart()}, c)
	for run := range kills {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), "STREAM_TEST_SERVER="+dir)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := sync.OnceFunc(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		t.Cleanup(kill)
		prefix := fmt.Sprintf("%d-", cmd.Process.Pid)
		c.wait(t, fmt.Sprint("events of run ", run), func() bool {
			n := len(c.events)
			return n > 0 && strings.HasPrefix(c.events[n-1].From.Name, prefix) && n > (run+1)*500
		})
		kill()
		if stderr.Len() > 0 {
			t.Log(stderr.String())
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.gaps) != kills-1 {
		t.Errorf("%d gaps, want one for each of %d restarts: %+v", len(c.gaps), kills-1, c.gaps)
	}
	// Put events and gaps together: the sequence has no hole and nothing twice.
	gaps := make(map[uint64]bool)
	for _, g := range c.gaps {
		if g.Reason != protocol.GapRestart || g.First != g.Last || g.Scope != "" {
			t.Errorf("gap %+v", g)
		}
		gaps[g.Last] = true
	}
	next, pid, k := uint64(1), 0, 0
	for _, ev := range c.events {
		for gaps[next] {
			next++
		}
		if ev.Seq != next {
			t.Fatalf("sequence %d, want %d", ev.Seq, next)
		}
		next++
		var p, i int
		if _, err := fmt.Sscanf(ev.From.Name, "%d-%d", &p, &i); err != nil {
			t.Fatal(err)
		}
		if p != pid {
			pid, k = p, 0
		}
		if k++; i != k {
			t.Fatalf("process %d: event %d after %d", p, i, k-1)
		}
	}
}

// TestResumeGaps: what the journal does not have any more is said to be missing.
func TestResumeGaps(t *testing.T) {
	b := newBed(t, Options{JournalEvents: 100}, ServerOptions{})
	publish(b.st, 1, 1000)
	id := b.st.ID()
	for _, c := range []struct {
		name string
		pos  client.Position
		want protocol.Gap
	}{
		{"too old", client.Position{Stream: id, Seq: 10}, protocol.Gap{First: 11, Last: 900, Reason: protocol.GapJournal}},
		{"another stream", client.Position{Stream: make([]byte, 16), Seq: 950}, protocol.Gap{First: 1, Last: 1000, Reason: protocol.GapStream}},
		{"from the future", client.Position{Seq: 1 << 60}, protocol.Gap{First: 1, Last: 1000, Reason: protocol.GapStream}},
		{"the last number", client.Position{Seq: 1<<64 - 1}, protocol.Gap{First: 1, Last: 1000, Reason: protocol.GapStream}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := newCollector()
			start(t, client.Options{Dial: b.dial, Subscribe: never(), Since: &c.pos}, got)
			got.waitLast(t, 1000)
			if len(got.gaps) != 1 || got.gaps[0] != c.want {
				t.Errorf("got %+v, want %+v", got.gaps, c.want)
			}
			if n := uint64(len(got.events)); n != 1000-c.want.Last {
				t.Errorf("%d events after the gap", n)
			}
		})
	}
}

// TestFromNow: without a position only what is new comes, and a break does not change that.
func TestFromNow(t *testing.T) {
	b := newBed(t, Options{}, ServerOptions{})
	publish(b.st, 1, 100)
	p := newProxy(t, 1, 20, 600, b.dial)
	c := newCollector()
	start(t, client.Options{Dial: p.connect}, c)
	c.wait(t, "a connection", func() bool { return c.connected > 0 })
	publish(b.st, 101, 1100)
	c.waitLast(t, 1100)
	c.exact(t, 101, 1100)
}
