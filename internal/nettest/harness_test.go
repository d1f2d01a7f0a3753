package nettest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/client"
	"github.com/heraldfs/heraldfs/protocol/transport"
	"github.com/heraldfs/heraldfs/protocol/transport/transporttest"
)

// fileName is the name of one of the load's files.
const fileName = "f%07d"

// load makes files until it is stopped.
type load struct {
	dir   string
	stop  chan struct{}
	ended sync.WaitGroup
	made  int // read it after ended
	err   error
}

// startLoad makes files in batches with a short pause, until finish.
func startLoad(t testing.TB, dir string) *load {
	t.Helper()
	l := &load{dir: dir, stop: make(chan struct{})}
	l.ended.Go(func() {
		const batch, most = 20, 200000
		pace := time.NewTicker(4 * time.Millisecond)
		defer pace.Stop()
		for l.made < most {
			for range batch {
				path := filepath.Join(dir, fmt.Sprintf(fileName, l.made+1))
				if l.err = unix.Mknod(path, unix.S_IFREG|0o600, 0); l.err != nil {
					return
				}
				l.made++
			}
			select {
			case <-l.stop:
				return
			case <-pace.C:
			}
		}
	})
	t.Cleanup(func() { l.finish(t) })
	return l
}

// finish ends the load and returns how many files there are. Idempotent.
func (l *load) finish(t testing.TB) int {
	t.Helper()
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.ended.Wait()
	if l.err != nil {
		t.Error(l.err)
	}
	return l.made
}

// process is a program whose output can be waited for.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	once sync.Once

	mu      sync.Mutex
	out     bytes.Buffer
	changed chan struct{}
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out.Write(b)
	close(p.changed)
	p.changed = make(chan struct{})
	return len(b), nil
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// launch runs heraldfs in a namespace, and ends it with the test.
func (n *netns) launch(t testing.TB, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(bin, args...), changed: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p, p
	check(t, n.do(p.cmd.Start))
	t.Cleanup(func() { p.end(unix.SIGTERM) })
	return p
}

// end ends the process. Idempotent.
func (p *process) end(sig syscall.Signal) {
	p.once.Do(func() {
		_ = p.cmd.Process.Signal(sig)
		stuck := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
		defer stuck.Stop()
		_ = p.cmd.Wait()
	})
}

// until waits for an output that ok likes.
func (p *process) until(what string, ok func(text string) bool) {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		p.mu.Lock()
		done, changed := ok(p.out.String()), p.changed
		p.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			p.t.Fatalf("%s: %s never came in\n%s", p.cmd.Args, what, p.text())
		}
	}
}

// says waits for a text in the output.
func (p *process) says(text string) {
	p.t.Helper()
	p.until(text, func(all string) bool { return strings.Contains(all, text) })
}

// bed is a served directory in a network.
type bed struct {
	t       testing.TB
	net     *network
	src     string
	args    []string // of serve
	url     string
	server  *process
	ca      *transporttest.Authority
	sec     *transport.Security
	tlsArgs []string // of watch
}

func newBed(t testing.TB, n *network, args ...string) *bed {
	t.Helper()
	b := &bed{t: t, net: n, src: t.TempDir(), ca: transporttest.NewAuthority(t), url: "tcp://" + serverIP + ":7433"}
	cert, key := b.ca.Issue(t, "server", net.ParseIP(serverIP))
	b.args = append([]string{"serve", "--listen", b.url, "--tls-cert", cert, "--tls-key", key, "--tls-ca", b.ca.CAFile}, args...)
	b.sec, b.tlsArgs = b.identity(b.ca, "subscriber")
	b.serve()
	return b
}

// identity makes a certificate, and is how one presents it.
func (b *bed) identity(a *transporttest.Authority, name string) (*transport.Security, []string) {
	b.t.Helper()
	cert, key := a.Issue(b.t, name)
	sec := &transport.Security{CertFile: cert, KeyFile: key, CAFile: b.ca.CAFile}
	check(b.t, sec.Load())
	return sec, []string{"--tls-cert", cert, "--tls-key", key, "--tls-ca", b.ca.CAFile}
}

// serve starts the server and returns when it listens.
func (b *bed) serve() {
	b.t.Helper()
	b.server = b.net.server.launch(b.t, append(b.args, b.src)...)
	b.server.says("msg=listening url=tcp")
}

// dial connects from the subscribers' namespace.
func (b *bed) dial(ctx context.Context) (nc net.Conn, err error) {
	u, err := transport.Parse(b.url)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err = b.net.subs.do(func() error {
		nc, err = u.Dial(ctx, b.sec)
		return err
	})
	return nc, err
}

// options are those of a subscriber that soon notices that the link is dead, and tries again soon.
func (b *bed) options() client.Options {
	return client.Options{
		Dial: b.dial, Conn: protocol.Options{IdleTimeout: time.Second, HandshakeTimeout: 5 * time.Second},
		Subscribe: protocol.Subscribe{Compact: protocol.CompactNever}, Since: &client.Position{},
		MinBackoff: 10 * time.Millisecond, MaxBackoff: 100 * time.Millisecond,
	}
}

// subscribe runs a subscriber until the test ends or stop is called, which returns Run's error.
func subscribe(t testing.TB, o client.Options, s *story) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx, o, s) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	return stop
}

// progress waits until s has got some more of the load, and is well in the middle of it.
func progress(t testing.TB, s *story) {
	t.Helper()
	from := s.soFar()
	s.wait(t, "some of the load", func() bool { return s.files > from+200 })
}
