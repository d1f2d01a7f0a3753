package nettest

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/client"
	"github.com/heraldfs/heraldfs/protocol/transport/transporttest"
)

// TestRefused: who comes with the wrong papers is told so, and the server's log says who and why. A
// subscriber that is connected meanwhile notices nothing.
func TestRefused(t *testing.T) {
	need(t)
	dir := t.TempDir()
	right, wrong := filepath.Join(dir, "right"), filepath.Join(dir, "wrong")
	check(t, os.WriteFile(right, []byte("the right token of ours"), 0o600))
	check(t, os.WriteFile(wrong, []byte("not the token of theirs"), 0o600))
	b := newBed(t, veth(t), "--token-file", right, "--max-subscribers=2", "--root", "ops="+t.TempDir(), "--allow", "ops=admin")
	stranger := transporttest.NewAuthority(t)
	_, strangers := b.identity(stranger, "stranger")
	unbelieving := append([]string(nil), b.tlsArgs...)
	unbelieving[5] = stranger.CAFile
	token := func(file string, args []string) []string {
		return append([]string{"--token-file", file}, args...)
	}

	s := newStory()
	o := b.options()
	o.Conn.Token = []byte("the right token of ours")
	subscribe(t, o, s)
	s.wait(t, "a connection", func() bool { return s.connects > 0 })
	l := startLoad(t, b.src)
	for _, c := range []struct {
		name         string
		args         []string
		root         string
		theirs, ours string // in the subscriber's output, in the server's log
	}{
		{"a certificate of another authority", token(right, strangers), "", "certificate", `reason=certificate`},
		{"a server of another authority", token(right, unbelieving), "", "unknown authority", `reason=certificate`},
		{"no certificate", []string{"--token-file", right}, "", "not safe", ""},
		{"wrong token", token(wrong, b.tlsArgs), "", "does not know the token", `reason=token`},
		{"no token", b.tlsArgs, "", "wants a token", `reason=token`},
		{"no such root", token(right, b.tlsArgs), "?root=none", "no such root", `reason=root`},
		{"a root of others", token(right, b.tlsArgs), "?root=ops", "no such root", `reason=root`},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := len(b.server.text())
			w := b.net.subs.launch(t, append(append([]string{"watch", "--format=json"}, c.args...), b.url+c.root)...)
			w.says(c.theirs)
			b.server.until(c.ours, func(text string) bool { return strings.Contains(text[before:], c.ours) })
			w.end(unix.SIGTERM)
		})
	}
	s.prove(t, l.finish(t))
	if s.connects != 1 {
		t.Errorf("the one who may had %d connections", s.connects)
	}
}

// script is a peer that sends bytes, with or without a proper hello before them.
type script struct {
	name  string
	greet bool   // handshake first
	send  string // hexadecimal
	// close ends the sending side after that; otherwise the peer just waits.
	close  bool
	reason string // in the server's log
	// want is what the peer is told; nil is only an end.
	want error
}

// TestGarbage: what is not the protocol, or only half of it, ends that connection with a reason on both sides
// as far as there is one, and nothing else.
func TestGarbage(t *testing.T) {
	need(t)
	b := newBed(t, veth(t))
	s := newStory()
	subscribe(t, b.options(), s)
	s.wait(t, "a connection", func() bool { return s.connects > 0 })
	l := startLoad(t, b.src)
	http := hex.EncodeToString([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	hello := "0000005c920186a56d61676963c408686572616c646673a17663a36d696e63a46361707390a56167656e74c401" +
		"78a56e6f6e6365c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	hello = "00000052" + hello[8:] // versions 99 to 99
	for _, c := range []script{
		{"HTTP", false, http, false, "reason=nonsense", nil},
		{"a frame of no bytes", false, "00000000", false, "reason=nonsense", nil},
		{"a frame of 4 GiB", false, "ffffffff", false, "reason=nonsense", nil},
		{"a claim of 2^27 elements", false, "0000000b920181a463617073dd08000000", false, "reason=nonsense", nil},
		{"half a hello", false, "0000005c920186a56d61", true, "reason=broken", nil},
		{"a version of the future", false, hello, false, "reason=version", protocol.ErrVersion},
		{"nothing", false, "", true, "reason=broken", nil},
		{"HTTP after the handshake", true, http, false, "reason=nonsense", protocol.ErrProtocol},
		{"half a subscribe", true, "0000002d920386a4726f6f74", true, "reason=broken", nil},
		{"an ack instead of a subscribe", true, "00000008920681a37365713c", false, "reason=nonsense", protocol.ErrProtocol},
		{"a status, which is told elsewhere", true, "00000003920b80", false, "reason=forbidden", protocol.ErrForbidden},
	} {
		t.Run(c.name, func(t *testing.T) { c.play(t, b) })
	}
	// A peer that the TLS layer does not understand.
	before := len(b.server.text())
	check(t, b.net.subs.do(func() error {
		c, err := net.Dial("tcp", strings.TrimPrefix(b.url, "tcp://"))
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := io.WriteString(c, "\x00\x00\x00\x5c\x92\x01 this is not TLS at all"); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(patience))
		_, _ = io.Copy(io.Discard, c)
		return nil
	}))
	b.server.until("the refusal of a stranger", func(text string) bool { return strings.Contains(text[before:], "reason=certificate") })

	s.prove(t, l.finish(t))
	if s.connects != 1 {
		t.Errorf("the honest one had %d connections", s.connects)
	}
	if text := b.server.text(); strings.Contains(text, "panic") || strings.Contains(text, "level=ERROR") {
		t.Errorf("the server's log:\n%s", text)
	}
}

func (c *script) play(t *testing.T, b *bed) {
	before := len(b.server.text())
	bytes, err := hex.DecodeString(c.send)
	check(t, err)
	nc, err := b.dial(t.Context())
	check(t, err)
	defer nc.Close()
	check(t, nc.SetDeadline(time.Now().Add(patience)))
	dec := protocol.NewDecoder(nc, 0)
	if c.greet {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		conn, err := protocol.Client(ctx, nc, protocol.Options{})
		check(t, err)
		check(t, conn.NetConn().SetDeadline(time.Now().Add(patience)))
	}
	_, err = nc.Write(bytes)
	check(t, err)
	if c.close {
		check(t, nc.(*tls.Conn).CloseWrite())
	}
	for err == nil {
		var m protocol.Message
		if m, err = dec.Decode(); err == nil {
			if said, ok := m.(*protocol.Error); ok {
				err = said
			}
		}
	}
	var late net.Error
	if errors.As(err, &late) && late.Timeout() || c.want != nil && !errors.Is(err, c.want) {
		t.Errorf("told %v, want %v", err, c.want)
	}
	b.server.until(c.reason, func(text string) bool { return strings.Contains(text[before:], c.reason) })
}

// TestWrongServer: what answers at the address is no heraldfs server, or goes away in the middle of a word. The
// subscriber says so, and the right one is found when it is back.
func TestWrongServer(t *testing.T) {
	need(t)
	b := newBed(t, veth(t))
	b.server.end(unix.SIGTERM)
	cert, key := b.ca.Issue(t, "impostor", net.ParseIP(serverIP))
	pair, err := tls.LoadX509KeyPair(cert, key)
	check(t, err)
	answers := make(chan string)
	var ln net.Listener
	check(t, b.net.server.do(func() (err error) {
		ln, err = tls.Listen("tcp", strings.TrimPrefix(b.url, "tcp://"), &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})
		return err
	}))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			answer, ok := <-answers
			if ok {
				_ = c.SetDeadline(time.Now().Add(patience))
				_, _ = c.Read(make([]byte, 4096))
				_, _ = io.WriteString(c, answer)
			}
			c.Close()
		}
	}()
	defer func() {
		close(answers)
		ln.Close()
		<-ended
	}()
	run := func(s *story) chan error {
		done := make(chan error, 1)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		t.Cleanup(cancel)
		go func() { done <- client.Run(ctx, b.options(), s) }()
		return done
	}
	// Nonsense will not be better at the next attempt; half an answer may.
	s := newStory()
	done := run(s)
	answers <- "HTTP/1.1 400 Bad Request\r\n\r\n"
	if err := <-done; !errors.Is(err, protocol.ErrNotHerald) {
		t.Errorf("HTTP: %v", err)
	}
	s = newStory()
	done = run(s)
	answers <- "\x00\x00\x00\x5c\x92\x01"
	s.wait(t, "the end of half an answer", func() bool {
		return len(s.failures) > 0 && errors.Is(s.failures[0], io.ErrUnexpectedEOF)
	})
	ln.Close()
	b.serve()
	s.wait(t, "the right server", func() bool { return s.connects > 0 })
	_ = done
}
