package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/transport/transporttest"
)

func TestParse(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	for in, want := range map[string]string{
		"unix:///a/b":           "unix:///a/b",
		"unix://":               "unix:///run/user/7/heraldfs.sock",
		"unix:":                 "unix:///run/user/7/heraldfs.sock",
		"tcp://h:1":             "tcp://h:1",
		"tcp://[::1]:1?root=x":  "tcp://[::1]:1",
		"vsock://2:99":          "vsock://2:99",
		"vsock://:99?cid=3,4":   "vsock://:99",
		"unix:///a?root=b%20/c": "unix:///a",
	} {
		u, err := Parse(in)
		if err != nil || u.String() != want || !IsURL(in) {
			t.Errorf("%s: got %v, %v, want %s", in, u, err, want)
		}
	}
	if u, err := Parse("unix:///a?root=b%20/c"); err != nil || u.Root != "b /c" {
		t.Errorf("root: %+v, %v", u, err)
	}
	for _, in := range []string{"", "/a", "http://h:1", "unix://a/b", "unix:a", "tcp://h", "tcp://h:1/x", "vsock://x:1",
		"vsock://2", "vsock://2:x", "tcp://u@h:1", "tcp://h:1?rooot=x", "tcp://h:1?cid=3", "vsock://:1?cid=x", "tcp://h:1#f"} {
		if u, err := Parse(in); !errors.Is(err, ErrURL) {
			t.Errorf("%q: got %v, %v, want ErrURL", in, u, err)
		}
	}
	t.Setenv("XDG_RUNTIME_DIR", "")
	if DefaultPath() != "/run/heraldfs.sock" {
		t.Errorf("default %s", DefaultPath())
	}
}

// TestInsecure: what anybody could reach does not even open, nor what is meant for the other side.
func TestInsecure(t *testing.T) {
	token := &Security{TokenFile: "x"}
	for _, c := range []struct {
		url          string
		sec          *Security
		listen, dial bool
	}{
		{"unix:///x", nil, true, true},
		{"tcp://127.0.0.1:1", nil, false, false},
		{"tcp://127.0.0.1:1", token, true, true},
		{"tcp://localhost:1", token, true, true},
		{"tcp://[::1]:1", token, true, true},
		{"tcp://0.0.0.0:1", token, false, false},
		{"tcp://:1", token, false, false},
		{"tcp://10.0.0.1:1", token, false, false},
		{"tcp://localhost.example:1", token, false, false},
		{"tcp://0.0.0.0:1", &Security{CertFile: "x"}, true, true},
		{"vsock://:1", nil, false, false},
		{"vsock://:1", token, true, false},
		{"vsock://:1?cid=3", nil, true, false},
		{"vsock://2:1", token, false, true},
		{"vsock://2:1", nil, false, true},
		{"vsock://2:1?cid=3", token, false, false},
		{"unix:///x?root=y", nil, false, true},
		{"unix:///x?origin=y", nil, false, true},
	} {
		u, err := Parse(c.url)
		if err != nil {
			t.Fatal(err)
		}
		if err := u.safe(c.sec, true); c.listen != (err == nil) || err != nil && !errors.Is(err, ErrInsecure) && !errors.Is(err, ErrURL) {
			t.Errorf("listen on %s: %v", c.url, err)
		}
		if err := u.safe(c.sec, false); c.dial != (err == nil) {
			t.Errorf("connect to %s: %v", c.url, err)
		}
	}
}

// pair connects to ln at u and returns both ends.
func pair(t *testing.T, u *URL, ln net.Listener, sec *Security) (client, server net.Conn, err error) {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			close(accepted)
			return
		}
		accepted <- c
	}()
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() {
		var err error
		client, err = u.Dial(ctx, sec)
		done <- err
	}()
	server = <-accepted
	// The server's half of a TLS handshake runs with its first read.
	first := make(chan error, 1)
	go func() {
		_ = server.SetDeadline(time.Now().Add(10 * time.Second))
		_, err := io.ReadFull(server, make([]byte, 1))
		if err != nil {
			server.Close()
		}
		first <- err
	}()
	if err = <-done; err != nil {
		server.Close()
		<-first
		return nil, nil, err
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	_, _ = client.Write([]byte("x"))
	return client, server, <-first
}

func TestUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	u := &URL{Network: "unix", Path: path}
	ln, err := u.Listen(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	_, server, err := pair(t, u, ln, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Check(server); err != nil {
		t.Error(err)
	}
	if _, err := u.Listen(t.Context(), nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second server: %v", err)
	}
	// A dead server's socket is replaced, a file is not.
	ln.(*UnixListener).UnixListener.Close()
	ln, err = u.Listen(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	// Another server's socket in the place of ours stays when we end.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := u.Listen(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the other server's socket: %v", err)
	} else {
		c.Close()
	}
	if err := errors.Join(other.Close(), other.Close()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Listen(t.Context(), nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("on a file: %v", err)
	}
}

func security(t *testing.T, a *transporttest.Authority, name string) *Security {
	t.Helper()
	cert, key := a.Issue(t, name)
	s := &Security{CertFile: cert, KeyFile: key, CAFile: a.CAFile}
	if err := s.Load(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTLS(t *testing.T) {
	ours, theirs := transporttest.NewAuthority(t), transporttest.NewAuthority(t)
	server := security(t, ours, "server")
	u := &URL{Network: "tcp", Host: "127.0.0.1:0"}
	ln, err := u.Listen(t.Context(), server)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	u.Host = ln.Addr().String()

	_, sc, err := pair(t, u, ln, security(t, ours, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	if got := Subject(sc); got != "alice" {
		t.Errorf("subject %q", got)
	}
	stranger := security(t, theirs, "mallory")
	if _, _, err := pair(t, u, ln, stranger); err == nil {
		t.Error("a server of another authority was believed")
	}
	// A stranger who does not care who the server is.
	stranger.CAFile = ours.CAFile
	if err := stranger.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := pair(t, u, ln, stranger); err == nil {
		t.Error("a certificate of another authority was accepted")
	}
	wrongName := security(t, ours, "bob")
	wrongName.ServerName = "elsewhere.example"
	if _, _, err := pair(t, u, ln, wrongName); err == nil {
		t.Error("a server of another name was believed")
	}

	// New certificates hold from the next connection on; broken ones change nothing.
	cert, key := theirs.Issue(t, "server")
	server.CertFile, server.KeyFile, server.CAFile = cert, key, theirs.CAFile
	if err := server.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := pair(t, u, ln, security(t, theirs, "carol")); err != nil {
		t.Errorf("after reload: %v", err)
	}
	if err := os.WriteFile(cert, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := server.Reload(); err == nil {
		t.Error("nonsense was loaded")
	}
	if _, _, err := pair(t, u, ln, security(t, theirs, "dave")); err != nil {
		t.Errorf("after a failed reload: %v", err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	file := func(text string) string {
		path := filepath.Join(dir, fmt.Sprint(len(text)))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ok := &Security{TokenFile: file("  0123456789abcdef\n")}
	if err := ok.Load(); err != nil || string(ok.Token()) != "0123456789abcdef" {
		t.Errorf("got %q, %v", ok.Token(), err)
	}
	for _, bad := range []*Security{
		{TokenFile: file("short")},
		{TokenFile: filepath.Join(dir, "missing")},
		{CertFile: "x"},
		{CertFile: file("xx"), KeyFile: file("xxx"), CAFile: file("xxxx")},
	} {
		if err := bad.Load(); err == nil {
			t.Errorf("%+v was loaded", bad.TokenFile)
		}
	}
	if len(ok.Token()) < protocol.MinToken {
		t.Error("a token that the protocol refuses")
	}
}

func TestAdopt(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, _, err := Adopt(ln, nil); !errors.Is(err, ErrInsecure) {
		t.Errorf("got %v, want ErrInsecure", err)
	}
	if _, u, err := Adopt(ln, &Security{TokenFile: "x"}); err != nil || u.Host != ln.Addr().String() {
		t.Errorf("got %v, %v", u, err)
	}
}
