package agents

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/transport"
	"github.com/heraldfs/heraldfs/protocol/transport/transporttest"
)

// TestStrangers: who connects without being an agent that knows the token replaces nobody, is not believed,
// and keeps nobody out.
func TestStrangers(t *testing.T) {
	token := []byte("a token of a good length")
	hello := func(nc net.Conn, m protocol.Message) {
		if err := protocol.NewEncoder(nc).Encode(m); err != nil {
			t.Error(err)
		}
	}
	for name, say := range map[string]func(net.Conn){
		"nothing": func(net.Conn) {},
		"nonsense": func(nc net.Conn) {
			io.WriteString(nc, "GET / HTTP/1.1\r\n\r\n")
		},
		"attach without a hello":  func(nc net.Conn) { hello(nc, &protocol.Attach{Tid: 9}) },
		"results without a hello": func(nc net.Conn) { hello(nc, &protocol.Results{ID: 1, Done: 1}) },
		"hello and silence": func(nc net.Conn) {
			hello(nc, &protocol.Hello{Version: protocol.Version, MinVersion: protocol.MinVersion, Caps: []string{protocol.CapAgent}, Nonce: make([]byte, 16)})
		},
		"hello and a wrong token": func(nc net.Conn) {
			_, err := protocol.OpenAgent(t.Context(), nc, protocol.Options{Token: []byte("another token, as long")})
			if err == nil {
				t.Error("a wrong token was accepted")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, Options{Token: token})
			link, _ := b.agent(token)
			a := b.wait()
			for range 3 * maxStrangers {
				nc, err := net.Dial("unix", b.path)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { nc.Close() })
				say(nc)
			}
			b.works(a, link)
			select {
			case <-a.Done():
				t.Error("the agent was replaced")
			default:
			}
			// A true one is let in, and replaces it.
			b.agent(token)
			if b.wait() == a {
				t.Error("the old agent came again")
			}
			<-a.Done()
		})
	}
}

// works has the agent perform a call.
func (b *bed) works(a interface{ Flush() error }, link *protocol.AgentLink) {
	b.t.Helper()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if c := calls(b.t, link); link.Write(&protocol.Results{ID: c.ID, Done: uint32(len(c.Calls))}) != nil {
			b.t.Error("no answer could be given")
		}
	}()
	c := unlink
	if err := errors.Join(a.(*agent).Later(&c), a.Flush()); err != nil {
		b.t.Errorf("the agent does not work: %v", err)
	}
	<-answered
}

// TestUncertified: on TCP it takes a certificate to replace an agent, and who does not even begin with TLS has little time.
func TestUncertified(t *testing.T) {
	ca := transporttest.NewAuthority(t)
	sec := func(name string) *transport.Security {
		cert, key := ca.Issue(t, name)
		s := &transport.Security{CertFile: cert, KeyFile: key, CAFile: ca.CAFile}
		if err := s.Load(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	u := &transport.URL{Network: "tcp", Host: "127.0.0.1:0"}
	ln, err := u.Listen(t.Context(), sec("host"))
	if err != nil {
		t.Fatal(err)
	}
	u.Host = ln.Addr().String()
	b := &bed{t: t}
	b.run(Options{CallTimeout: time.Second}, ln)
	nc, err := u.Dial(t.Context(), sec("guest"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	link := b.attach(nc, nil)
	a := b.wait()
	for range 2 * maxStrangers {
		c, err := net.Dial("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		defer func() {
			if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a silent stranger is still connected: %v", err)
			}
		}()
	}
	b.works(a, link)
}

// starving is a listener of a process that is out of descriptors at times.
type starving struct {
	net.Listener
	n atomic.Int32
}

func (l *starving) Accept() (net.Conn, error) {
	if l.n.Add(1)%3 != 0 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", unix.EMFILE)}
	}
	return l.Listener.Accept()
}

// TestStarving: without descriptors for a while, the host takes agents afterwards.
func TestStarving(t *testing.T) {
	b := &bed{t: t, path: t.TempDir() + "/s"}
	ln, err := net.Listen("unix", b.path)
	if err != nil {
		t.Fatal(err)
	}
	b.run(Options{}, &starving{Listener: ln})
	for range 3 {
		b.agent(nil)
		b.wait()
	}
}

// TestBroken: a listener that is broken ends Run.
func TestBroken(t *testing.T) {
	ln, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	h := New(Options{Listen: func(context.Context) (net.Listener, error) { return ln, nil }})
	if err := h.Run(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Error(fmt.Errorf("got %w", err))
	}
}
