package transport

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/protocol"
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

// TestInsecure: what anybody could reach does not even open.
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
		{"vsock://:1", nil, false, true},
		{"vsock://:1", token, true, true},
		{"vsock://:1?cid=3", nil, true, true},
	} {
		u, err := Parse(c.url)
		if err != nil {
			t.Fatal(err)
		}
		if err := u.safe(c.sec, true); c.listen != (err == nil) || err != nil && !errors.Is(err, ErrInsecure) {
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
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	ln, err = u.Listen(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Listen(t.Context(), nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("on a file: %v", err)
	}
}

// authority signs certificates into a directory.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.issue(t, "ca")
	return a
}

func (a *authority) issue(t *testing.T, name string) (cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.n++
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(a.n), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		tmpl.IsCA, tmpl.KeyUsage = true, x509.KeyUsageCertSign
		parent, signer = tmpl, priv
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &priv.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert == nil {
		a.key = priv
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")
	writePEM(t, cert, "CERTIFICATE", der)
	writePEM(t, key, "PRIVATE KEY", keyDER)
	return cert, key
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (a *authority) security(t *testing.T, name string) *Security {
	t.Helper()
	cert, key := a.issue(t, name)
	s := &Security{CertFile: cert, KeyFile: key, CAFile: filepath.Join(a.dir, "ca.pem")}
	if err := s.Load(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTLS(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	server := ours.security(t, "server")
	u := &URL{Network: "tcp", Host: "127.0.0.1:0"}
	ln, err := u.Listen(t.Context(), server)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	u.Host = ln.Addr().String()

	_, sc, err := pair(t, u, ln, ours.security(t, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	if got := Subject(sc); got != "alice" {
		t.Errorf("subject %q", got)
	}
	stranger := theirs.security(t, "mallory")
	if _, _, err := pair(t, u, ln, stranger); err == nil {
		t.Error("a server of another authority was believed")
	}
	// A stranger who does not care who the server is.
	stranger.CAFile = filepath.Join(ours.dir, "ca.pem")
	if err := stranger.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := pair(t, u, ln, stranger); err == nil {
		t.Error("a certificate of another authority was accepted")
	}
	wrongName := ours.security(t, "bob")
	wrongName.ServerName = "elsewhere.example"
	if _, _, err := pair(t, u, ln, wrongName); err == nil {
		t.Error("a server of another name was believed")
	}

	// New certificates hold from the next connection on; broken ones change nothing.
	cert, key := theirs.issue(t, "server")
	server.CertFile, server.KeyFile, server.CAFile = cert, key, filepath.Join(theirs.dir, "ca.pem")
	if err := server.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := pair(t, u, ln, theirs.security(t, "carol")); err != nil {
		t.Errorf("after reload: %v", err)
	}
	if err := os.WriteFile(cert, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := server.Reload(); err == nil {
		t.Error("nonsense was loaded")
	}
	if _, _, err := pair(t, u, ln, theirs.security(t, "dave")); err != nil {
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
