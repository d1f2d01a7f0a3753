package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/client"
)

const (
	streamChanges = 200000
	streamRate    = 150000 // events a second, one core
	streamDelay   = 300 * time.Microsecond
	// streamBatch is how many events a server puts into a message.
	streamBatch = 512
)

func (b *bench) stream() error {
	if err := b.streamBurst(); err != nil {
		return err
	}
	if err := b.streamAlone(); err != nil {
		return err
	}
	return b.streamDelay()
}

// serve runs `heraldfs serve` on dir and returns how to connect to it. Whoever calls it stops the process.
func (b *bench) serve(dir, backend string) (*process, func(context.Context) (net.Conn, error), error) {
	sock := filepath.Join(b.dir, "serve.sock")
	p, err := b.start("msg=listening", onStderr, b.program, "serve", "--watcher="+backend, "--listen", "unix://"+sock, dir)
	return p, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", sock)
	}, err
}

// audience is a subscriber. It counts files with numbers for names, and says when it heard of one.
type audience struct {
	connected       chan struct{}
	heard           chan time.Time // of every create; has room for one
	last            chan struct{}  // closed at the last file
	files           int
	next            int
	missing, double int
	gaps            int
	once            sync.Once
}

func newAudience(files int) *audience {
	return &audience{connected: make(chan struct{}), heard: make(chan time.Time, 1), last: make(chan struct{}), files: files, next: 1}
}

// Connected implements client.Handler.
func (a *audience) Connected(*protocol.Subscribed) error {
	a.once.Do(func() { close(a.connected) })
	return nil
}

// Disconnected implements client.Handler. A connection that breaks here is a failure.
func (a *audience) Disconnected(err error, _ time.Duration) error { return err }

// Gap implements client.Handler.
func (a *audience) Gap(*protocol.Gap) error {
	a.gaps++
	return nil
}

// Events implements client.Handler.
func (a *audience) Events(m *protocol.Events) error {
	at := time.Now()
	for i := range m.Events {
		ev := &m.Events[i]
		var n int
		if ev.Op != protocol.OpCreate || !number(ev.From.Name, &n) {
			continue
		}
		switch {
		case n < a.next:
			a.double++
			continue
		case n > a.next:
			a.missing += n - a.next
		}
		a.next = n + 1
		if a.files == 0 {
			a.heard <- at
		} else if n == a.files {
			close(a.last)
		}
	}
	return nil
}

// number reads a name that is a number.
func number(name string, n *int) bool {
	for _, c := range []byte(name) {
		if c < '0' || c > '9' {
			return false
		}
		*n = *n*10 + int(c-'0')
	}
	return name != ""
}

// follow subscribes to all, and returns when the subscription stands. stop ends it.
func (b *bench) follow(dial func(context.Context) (net.Conn, error), a *audience) (stop func() error, err error) {
	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan error, 1)
	go func() {
		done <- client.Run(ctx, client.Options{
			Dial: dial, Subscribe: protocol.Subscribe{Mask: notify.DefaultMask, Compact: protocol.CompactNever},
		}, a)
	}()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	select {
	case <-a.connected:
		return stop, nil
	case err := <-done:
		cancel()
		return nil, fmt.Errorf("subscribe: %w", err)
	}
}

func (b *bench) streamBurst() error {
	t := b.report.add(fmt.Sprintf("%d files made at full speed, told over a unix socket", streamChanges),
		"watcher", "host alone", "until the subscriber has them", "events/s", "missing", "doubled", "gaps", "memory of the server", "target")
	for _, backend := range []string{"fanotify", "inotify"} {
		if err := b.streamBurstOf(t, backend); err != nil {
			return fmt.Errorf("%s: %w", backend, err)
		}
	}
	t.note("The files are numbered, and each number has to come once and in order. What a full inotify queue drops is told as a gap; fanotify's queue has no bound.")
	return nil
}

func (b *bench) streamBurstOf(t *table, backend string) (err error) {
	dir := filepath.Join(b.dir, "burst-"+backend)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, dial, err := b.serve(dir, backend)
	if err != nil {
		return err
	}
	defer p.stop(unix.SIGTERM)
	a := newAudience(streamChanges)
	stop, err := b.follow(dial, a)
	if err != nil {
		return err
	}
	defer stop()
	began := time.Now()
	for i := 1; i <= streamChanges; i++ {
		if err := unix.Mknod(fmt.Sprintf("%s/%07d", dir, i), unix.S_IFREG|0o600, 0); err != nil {
			return err
		}
	}
	alone := time.Since(began)
	complete := true
	select {
	case <-a.last:
	case <-time.After(patience):
		complete = false // the last one was among those that an overflow took
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
	took := time.Since(began)
	memory, err := field(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid), "VmRSS:")
	if err != nil {
		return err
	}
	if err := stop(); err != nil {
		return err
	}
	if a.missing += streamChanges + 1 - a.next; a.missing > 0 && a.gaps == 0 {
		return fmt.Errorf("%d events are missing without a gap", a.missing)
	}
	until, rate, target := short(took), fmt.Sprintf("%.0f", float64(streamChanges-a.missing)/took.Seconds()), ""
	if !complete {
		until, rate = "-", "-"
	}
	if backend == "fanotify" {
		target = "none missing: " + verdict(a.missing == 0 && a.double == 0 && a.gaps == 0)
	}
	t.row(backend, short(alone), until, rate, fmt.Sprint(a.missing), fmt.Sprint(a.double), fmt.Sprint(a.gaps), megabytes(memory), target)
	return nil
}

// streamAlone sends events from one end of a unix socket pair to the other, in this process, on one core.
func (b *bench) streamAlone() error {
	t := b.report.add("The protocol alone: events encoded, sent over a unix socket, decoded and acknowledged, on one core",
		"events", "events/s", "target")
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	sealer := protocol.NewSealer(make([]byte, 32))
	plain := protocol.Event{Time: time.Now(), Op: protocol.OpModify, From: protocol.Place{Dir: "src/module/internal", Name: "file.go"}}
	whole := plain
	whole.Pid, whole.Object = 4711, sealer.Seal(notify.Object{FS: 1, Type: 1, Handle: "12345678"})
	for _, c := range []struct {
		name  string
		event protocol.Event
	}{{"name, operation, time", plain}, {"also pid and identity", whole}} {
		rates := make([]float64, 5)
		for i := range rates {
			rate, err := rateOf(b.ctx, c.event)
			if err != nil {
				return err
			}
			rates[i] = rate
		}
		slices.Sort(rates)
		rate := rates[len(rates)/2]
		t.row(c.name, fmt.Sprintf("%.0f", rate), fmt.Sprintf("%d/s: %s", streamRate, verdict(rate >= streamRate)))
	}
	t.note("Both ends are in one process with GOMAXPROCS=1. Messages of %d events, 32 on the way. Medians of 5 rounds of %d events.", streamBatch, streamChanges)
	return nil
}

func rateOf(ctx context.Context, ev protocol.Event) (float64, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if ends[i], err = net.FileConn(f); err != nil {
			return 0, err
		}
		f.Close()
	}
	sent := make(chan error, 1)
	go func() { sent <- sendEvents(ctx, ends[0], ev) }()
	c, err := protocol.Client(ctx, ends[1], protocol.Options{})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	began := time.Now()
	for got := 0; got < streamChanges; {
		m, err := c.Read()
		if err != nil {
			return 0, err
		}
		events, ok := m.(*protocol.Events)
		if !ok {
			continue
		}
		got += len(events.Events)
		if err := c.Write(&protocol.Ack{Seq: events.Last}); err != nil {
			return 0, err
		}
	}
	rate := streamChanges / time.Since(began).Seconds()
	return rate, errors.Join(c.Close(), <-sent)
}

// sendEvents is a server with nothing behind it.
func sendEvents(ctx context.Context, nc net.Conn, ev protocol.Event) error {
	c, err := protocol.Server(ctx, nc, protocol.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	acked := make(chan struct{}, protocol.DefaultWindow)
	go func() {
		defer close(acked)
		for {
			if _, err := c.Read(); err != nil {
				return
			}
			acked <- struct{}{}
		}
	}()
	var enc protocol.EventEncoder
	flying := 0
	for seq := uint64(1); seq <= streamChanges; {
		m := &protocol.Events{First: seq}
		for ; seq <= streamChanges && len(m.Raw) < streamBatch; seq++ {
			ev.Seq = seq
			m.Raw = append(m.Raw, enc.AppendEvent(nil, &ev))
		}
		m.Last = seq - 1
		if err := c.Write(m); err != nil {
			return err
		}
		if flying++; flying == protocol.DefaultWindow {
			<-acked
			flying--
		}
	}
	for range acked { // until the peer has read all and closes
	}
	return nil
}

func (b *bench) streamDelay() error {
	t := b.report.add(fmt.Sprintf("Delay from the beginning of a system call to a subscriber on a unix socket, idle, %d samples", b.samples),
		"watcher", "p50", "p99", "max", "target")
	for _, backend := range []string{"fanotify", "inotify"} {
		d, err := b.streamDelayOf(backend)
		if err != nil {
			return fmt.Errorf("%s: %w", backend, err)
		}
		p50 := percentile(d, 50)
		t.row(backend, short(p50), short(percentile(d, 99)), short(percentile(d, 100)), fmt.Sprintf("%s: %s", short(streamDelay), verdict(p50 <= streamDelay)))
	}
	t.note("mknod of one file every %v; the time of the call itself is in it.", delayGap)
	return nil
}

func (b *bench) streamDelayOf(backend string) ([]time.Duration, error) {
	dir := filepath.Join(b.dir, "delay-"+backend)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	p, dial, err := b.serve(dir, backend)
	if err != nil {
		return nil, err
	}
	defer p.stop(unix.SIGTERM)
	a := newAudience(0)
	stop, err := b.follow(dial, a)
	if err != nil {
		return nil, err
	}
	defer stop()
	const warmUp = 40
	var all []time.Duration
	for i := 1; i <= warmUp+b.samples; i++ {
		time.Sleep(delayGap)
		path := fmt.Sprintf("%s/%07d", dir, i)
		began := time.Now()
		if err := unix.Mknod(path, unix.S_IFREG|0o600, 0); err != nil {
			return nil, err
		}
		select {
		case at := <-a.heard:
			if i > warmUp {
				all = append(all, at.Sub(began))
			}
		case <-time.After(patience):
			return nil, fmt.Errorf("%s was never told", path)
		case <-b.ctx.Done():
			return nil, b.ctx.Err()
		}
	}
	return all, nil
}
