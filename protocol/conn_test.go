package protocol

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type result struct {
	c   *Conn
	err error
}

// shake runs both sides of a handshake. Whoever fails closes, so both return.
func shake(t *testing.T, client, server Options) (result, result) {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	done := make(chan result, 1)
	go func() {
		c, err := Server(t.Context(), b, server)
		done <- result{c, err}
	}()
	c, err := Client(t.Context(), a, client)
	return result{c, err}, <-done
}

func TestHandshake(t *testing.T) {
	c, s := shake(t, Options{Agent: "sub", Caps: []string{"x", "y"}, Token: vectorToken()},
		Options{Agent: "srv", Caps: []string{"y", "z"}, Token: vectorToken()})
	if c.err != nil || s.err != nil {
		t.Fatalf("client %v, server %v", c.err, s.err)
	}
	if c.c.Peer().Agent != "srv" || s.c.Peer().Agent != "sub" {
		t.Errorf("agents %q, %q", c.c.Peer().Agent, s.c.Peer().Agent)
	}
	if !c.c.Has("y") || c.c.Has("x") || c.c.Has("z") {
		t.Errorf("capabilities %q", c.c.Peer().Caps)
	}
	want := &Gap{First: 1, Last: 2, Scope: "a/b", Reason: GapBacklog}
	go func() {
		_ = s.c.Write(&Ping{ID: 5})
		if m, err := s.c.Read(); err == nil && cmp.Equal(m, Message(&Pong{ID: 5})) {
			_ = s.c.Write(want)
		}
		s.c.Refuse(&Error{Code: CodeShutdown})
	}()
	if m, err := c.c.Read(); err != nil || !cmp.Equal(m, Message(&Ping{ID: 5})) {
		t.Fatalf("got %v, %v", m, err)
	}
	if m, err := c.c.Read(); err != nil || !cmp.Equal(m, Message(want)) {
		t.Fatalf("got %v, %v", m, err)
	}
	if _, err := c.c.Read(); !errors.Is(err, ErrShutdown) {
		t.Fatalf("got %v, want ErrShutdown", err)
	}
	if err := c.c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.c.Close(); err != nil {
		t.Error("second close:", err)
	}
}

func TestTokens(t *testing.T) {
	other := []byte("another token of some length")
	t.Run("server knows another", func(t *testing.T) {
		c, s := shake(t, Options{Token: vectorToken()}, Options{Token: other})
		if !errors.Is(c.err, ErrAuth) || s.err == nil {
			t.Errorf("client %v, server %v", c.err, s.err)
		}
	})
	t.Run("server has none", func(t *testing.T) {
		c, _ := shake(t, Options{Token: vectorToken()}, Options{})
		if !errors.Is(c.err, ErrAuth) {
			t.Errorf("client %v", c.err)
		}
	})
	t.Run("client has none", func(t *testing.T) {
		c, s := shake(t, Options{}, Options{Token: vectorToken()})
		if !errors.Is(c.err, ErrAuth) || s.err == nil {
			t.Errorf("client %v, server %v", c.err, s.err)
		}
	})
	t.Run("client claims", func(t *testing.T) {
		a, b := net.Pipe()
		defer a.Close()
		done := make(chan error, 1)
		go func() {
			_, err := Server(t.Context(), b, Options{Token: vectorToken()})
			done <- err
		}()
		enc, dec := NewEncoder(a), NewDecoder(a, 0)
		_ = enc.Encode(&Hello{Version: 1, MinVersion: 1, Nonce: seq(32, 0)})
		m, err := dec.Decode()
		if err != nil {
			t.Fatal(err)
		}
		// The server's own proof, sent back, proves nothing.
		_ = enc.Encode(&Auth{Proof: m.(*Hello).Proof})
		m, err = dec.Decode()
		if e, ok := m.(*Error); !ok || e.Code != CodeAuth {
			t.Errorf("got %v, %v", m, err)
		}
		if err := <-done; !errors.Is(err, ErrAuth) {
			t.Errorf("server %v, want ErrAuth", err)
		}
	})
}

func TestVersions(t *testing.T) {
	for _, v := range []struct {
		hello Hello
		ok    bool
	}{
		{Hello{Version: 9, MinVersion: 1}, true},
		{Hello{Version: 9, MinVersion: 2}, false},
		{Hello{Version: 0, MinVersion: 0}, false},
	} {
		a, b := net.Pipe()
		done := make(chan error, 1)
		go func() {
			_, err := Server(t.Context(), b, Options{})
			done <- err
		}()
		v.hello.Nonce = seq(32, 0)
		if err := NewEncoder(a).Encode(&v.hello); err != nil {
			t.Fatal(err)
		}
		m, err := NewDecoder(a, 0).Decode()
		if err != nil {
			t.Fatal(err)
		}
		e, refused := m.(*Error)
		if refused == v.ok || refused && !errors.Is(e, ErrVersion) {
			t.Errorf("%d to %d: %v", v.hello.MinVersion, v.hello.Version, m)
		}
		if err := <-done; v.ok != (err == nil) || !v.ok && !errors.Is(err, ErrVersion) {
			t.Errorf("%d to %d: server says %v", v.hello.MinVersion, v.hello.Version, err)
		}
		a.Close()
	}
}

func TestServerVersion(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		_, _ = NewDecoder(b, 0).Decode()
		_ = NewEncoder(b).Encode(&Hello{Version: 2, MinVersion: 2, Nonce: seq(32, 0)})
	}()
	if _, err := Client(t.Context(), a, Options{}); !errors.Is(err, ErrVersion) {
		t.Errorf("got %v, want ErrVersion", err)
	}
}

func TestGarbage(t *testing.T) {
	var early bytes.Buffer
	if err := NewEncoder(&early).Encode(&Subscribe{}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		sent []byte
		want error
	}{
		"http":         {[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), ErrNotHerald},
		"zeros":        {make([]byte, 64), ErrNotHerald},
		"random":       {[]byte("\x00\x00\x00\x08abcdefgh"), ErrNotHerald},
		"out of turn":  {early.Bytes(), ErrProtocol},
		"nothing":      {nil, io.EOF},
		"half a frame": {[]byte("\x00\x00\x00\x40\x92\x01"), io.ErrUnexpectedEOF},
		"long hello":   {[]byte("\x00\x00\x20\x00"), ErrFrameTooBig},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := net.Pipe()
			go func() {
				_, _ = a.Write(c.sent)
				_ = a.Close()
			}()
			if _, err := Server(t.Context(), b, Options{}); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// TestSilence: who says nothing, or half a frame, is not waited for.
func TestSilence(t *testing.T) {
	for _, sent := range []string{"", "\x00\x00\x00\x40\x92"} {
		a, b := net.Pipe()
		go func() { _, _ = a.Write([]byte(sent)) }()
		_, err := Server(t.Context(), b, Options{HandshakeTimeout: 20 * time.Millisecond})
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after %q: %v, want a timeout", sent, err)
		}
		a.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	a, b := net.Pipe()
	defer a.Close()
	cancel()
	if _, err := Server(ctx, b, Options{}); err == nil {
		t.Error("a cancelled handshake succeeded")
	}
	c, s := shake(t, Options{IdleTimeout: 20 * time.Millisecond, WriteTimeout: 20 * time.Millisecond}, Options{})
	if c.err != nil || s.err != nil {
		t.Fatal(c.err, s.err)
	}
	if _, err := c.c.Read(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("idle: %v, want a timeout", err)
	}
	if err := c.c.Write(&Ack{}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("stuck peer: %v, want a timeout", err)
	}
}

func TestErrors(t *testing.T) {
	for code := CodeVersion; code <= CodeShutdown; code++ {
		e := &Error{Code: code, Text: "esc\x1b[0m"}
		if e.Code.sentinel() == nil || !errors.Is(e, e.Code.sentinel()) || errors.Is(e, ErrMalformed) {
			t.Errorf("code %d is not its sentinel", code)
		}
		if bytes.IndexByte([]byte(e.Error()), 0x1b) >= 0 {
			t.Error("a peer's escape sequence is printed")
		}
	}
}
