package agent

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
)

func TestMain(m *testing.M) { testenv.LeakMain(m) }

// limit bounds what takes milliseconds.
const limit = 20 * time.Second

// host is who the agent talks to, on a loopback address.
type host struct {
	t     *testing.T
	ln    net.Listener
	dials atomic.Int64
}

func newHost(t *testing.T) *host {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return &host{t: t, ln: ln}
}

func (h *host) open(ctx context.Context) (protocol.Channel, error) {
	h.dials.Add(1)
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", h.ln.Addr().String())
	if err != nil {
		return nil, err
	}
	return nc, nil
}

// peer is the host's end of one channel.
type peer struct {
	t    *testing.T
	nc   net.Conn
	link *protocol.AgentLink
}

// accept takes an agent, as far as its Attach.
func (h *host) accept() *peer {
	h.t.Helper()
	h.ln.(*net.TCPListener).SetDeadline(time.Now().Add(limit))
	nc, err := h.ln.Accept()
	if err != nil {
		h.t.Fatalf("no agent comes: %v", err)
	}
	h.t.Cleanup(func() { nc.Close() })
	p := &peer{h.t, nc, protocol.NewAgentHost(nc, protocol.Options{Agent: "test", IdleTimeout: limit})}
	if err := p.link.Accept(context.Background(), p.read().(*protocol.Hello)); err != nil {
		h.t.Fatal(err)
	}
	if a, ok := p.read().(*protocol.Attach); !ok || a.Tid == 0 {
		h.t.Fatalf("the agent says %+v, want its thread", a)
	}
	return p
}

func (p *peer) read() protocol.Message {
	p.t.Helper()
	m, err := p.link.Read()
	if err != nil {
		p.t.Fatal(err)
	}
	return m
}

func (p *peer) write(m protocol.Message) {
	p.t.Helper()
	if err := p.link.Write(m); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) calls(calls ...notify.Call) protocol.Results {
	p.t.Helper()
	p.write(&protocol.Calls{ID: 7, Calls: calls})
	r, ok := p.read().(*protocol.Results)
	if !ok || r.ID != 7 {
		p.t.Fatalf("answer %+v", r)
	}
	return *r
}

// closed waits for the agent to leave.
func (p *peer) closed() {
	p.t.Helper()
	if m, err := p.link.Read(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		p.t.Fatalf("the agent stays: %+v, %v", m, err)
	}
}

// run runs an agent until the test, or what is returned, ends it.
func run(t *testing.T, o Options) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, o) }()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("the agent ended: %v", err)
			}
		case <-time.After(limit):
			t.Error("the agent does not end")
		}
	}
	t.Cleanup(stop)
	return stop
}

func TestBackoff(t *testing.T) {
	b := backoff{min: 50, max: 1000}
	var got []time.Duration
	for range 7 {
		got = append(got, b.take())
	}
	b.reset()
	got = append(got, b.take(), b.take())
	if want := []time.Duration{50, 100, 200, 400, 800, 1000, 1000, 50, 100}; !slices.Equal(got, want) {
		t.Errorf("pauses %v, want %v", got, want)
	}
}

// TestReconnect: a host that is not there yet, or goes, is tried again, and no sooner than was said.
func TestReconnect(t *testing.T) {
	h := newHost(t)
	refuse := int64(4)
	var begin, end atomic.Int64
	run(t, Options{Mountpoint: testenv.Tmpfs(t), MinBackoff: 10 * time.Millisecond, MaxBackoff: 20 * time.Millisecond,
		Open: func(ctx context.Context) (protocol.Channel, error) {
			now := time.Now().UnixNano()
			begin.CompareAndSwap(0, now)
			if h.dials.Load() < refuse {
				h.dials.Add(1)
				return nil, errors.New("no port of that name")
			}
			end.CompareAndSwap(0, now)
			return h.open(ctx)
		}})
	p := h.accept()
	if d := time.Duration(end.Load() - begin.Load()); d < 70*time.Millisecond {
		t.Errorf("the fifth attempt came %v after the first, want 10, 20, 20 and 20 ms", d)
	}
	for range 3 {
		p.nc.Close()
		p = h.accept()
	}
	// What makes no sense ends a channel as well.
	p.write(&protocol.Attach{Tid: 1})
	p.closed()
	h.accept()
}

// TestHail: another host at the other end of a channel is greeted anew, without a pause.
func TestHail(t *testing.T) {
	h := newHost(t)
	run(t, Options{Mountpoint: testenv.Tmpfs(t), Open: h.open, MinBackoff: time.Hour})
	for range 3 {
		h.accept().write(&protocol.Hail{})
	}
	h.accept()
}

// TestFarewell: an agent that is told to end says so, since a channel may not show it.
func TestFarewell(t *testing.T) {
	h := newHost(t)
	stop := run(t, Options{Mountpoint: testenv.Tmpfs(t), Open: h.open})
	p := h.accept()
	p.write(&protocol.Ping{ID: 3})
	p.read()
	stop()
	var last *protocol.Error
	if m, err := p.link.Read(); !errors.As(err, &last) || last.Text != "the agent ends" {
		t.Errorf("its last word is %+v, %v", m, err)
	}
	p.closed()
}

// TestSilence: a host that says nothing is left; one that pings is answered.
func TestSilence(t *testing.T) {
	h := newHost(t)
	run(t, Options{Mountpoint: testenv.Tmpfs(t), Open: h.open, MinBackoff: time.Millisecond, IdleTimeout: 200 * time.Millisecond})
	p := h.accept()
	p.write(&protocol.Ping{ID: 3})
	if pong, ok := p.read().(*protocol.Pong); !ok || pong.ID != 3 {
		t.Errorf("the answer to a ping is %+v", pong)
	}
	p.closed()
	h.accept()
}

// TestCalls: calls are made on the mount up to the first that fails, and a new channel finds no slot open.
func TestCalls(t *testing.T) {
	h, mnt := newHost(t), testenv.Tmpfs(t)
	run(t, Options{Mountpoint: mnt, Open: h.open, MinBackoff: time.Millisecond})
	mkdir := func(name string) notify.Call {
		return notify.Call{Op: notify.CallMkdir, Dir: notify.SlotRoot, Name: name, Mode: 0o700}
	}
	walk := notify.Call{Op: notify.CallWalk, Dir: notify.SlotRoot, Name: "a", Slot: notify.SlotFree}
	p := h.accept()
	if r := p.calls(mkdir("a"), walk); r.Done != 2 || r.Errno != 0 {
		t.Errorf("two calls: %+v", r)
	}
	if r := p.calls(mkdir("b"), mkdir("a"), mkdir("c")); r.Done != 1 || r.Errno != uint32(unix.EEXIST) {
		t.Errorf("three calls of which the second fails: %+v", r)
	}
	if r := p.calls(walk); r.Errno != uint32(unix.EINVAL) {
		t.Errorf("a slot in use: %+v", r)
	}
	if r := p.calls(notify.Call{Op: notify.CallMkdir, Dir: notify.SlotRoot, Name: "../x", Mode: 0o700}); r.Errno == 0 {
		t.Errorf("a call that leads out: %+v", r)
	}
	p.nc.Close()
	p = h.accept()
	if r := p.calls(walk); r.Done != 1 {
		t.Errorf("a slot of the channel before: %+v", r)
	}
	for name, there := range map[string]bool{"a": true, "b": true, "c": false} {
		if _, err := os.Lstat(filepath.Join(mnt, name)); (err == nil) != there {
			t.Errorf("%s: %v, want it there: %t", name, err, there)
		}
	}
}

// TestMount: the agent waits for the mount, does not keep it busy, leaves the host with it, and takes the next one.
func TestMount(t *testing.T) {
	h, dir := newHost(t), t.TempDir()
	testenv.Need(t, testenv.Root)
	stop := run(t, Options{Mountpoint: dir, Open: h.open, MinBackoff: time.Millisecond})
	mkdir := notify.Call{Op: notify.CallMkdir, Dir: notify.SlotRoot, Name: "made", Mode: 0o700}
	for range 2 {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
			t.Fatal(err)
		}
		p := h.accept()
		r := p.calls(mkdir)
		if err := unix.Unmount(dir, 0); err != nil {
			unix.Unmount(dir, unix.MNT_DETACH)
			t.Fatalf("the agent keeps the mount busy: %v", err)
		}
		if r.Done != 1 {
			t.Errorf("%+v", r)
		}
		p.closed()
	}
	// Without a mount it asks nobody, and can be ended.
	if n := h.dials.Load(); n != 2 {
		t.Errorf("%d channels were opened, want one for each mount", n)
	}
	stop()
	if _, err := os.Lstat(filepath.Join(dir, "made")); err == nil {
		t.Error("a call was made on what is below the mount")
	}
}
