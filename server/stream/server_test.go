package stream

import (
	"errors"
	"io"
	"net"
	"testing"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/client"
)

// ends runs a subscriber that must fail for good.
func ends(t *testing.T, o client.Options) error {
	t.Helper()
	return client.Run(t.Context(), o, newCollector())
}

func TestRefusals(t *testing.T) {
	token := []byte("0123456789abcdef")
	b := newBed(t, Options{}, ServerOptions{
		Conn:  protocol.Options{Token: token},
		Allow: func(_ net.Conn, root string) bool { return root != "src" },
	})
	with := func(tok string, sub protocol.Subscribe) client.Options {
		return client.Options{Dial: b.dial, Conn: protocol.Options{Token: []byte(tok)}, Subscribe: sub}
	}
	for _, c := range []struct {
		name string
		o    client.Options
		want error
	}{
		{"no token", with("", protocol.Subscribe{}), protocol.ErrAuth},
		{"wrong token", with("0123456789abcdeX", protocol.Subscribe{}), protocol.ErrAuth},
		{"no such root", with(string(token), protocol.Subscribe{Root: "nope"}), protocol.ErrNoRoot},
		{"a root it may not see", with(string(token), protocol.Subscribe{Root: "src"}), protocol.ErrNoRoot},
		{"a bad glob", with(string(token), protocol.Subscribe{Include: []string{"[a"}}), protocol.ErrProtocol},
		{"too many globs", with(string(token), protocol.Subscribe{Exclude: make([]string, protocol.MaxGlobs+1)}), protocol.ErrProtocol},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := ends(t, c.o); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	ok := newCollector()
	start(t, with(string(token), protocol.Subscribe{}), ok)
	ok.wait(t, "a connection with the right token", func() bool { return ok.connected > 0 })
}

func TestCheckAndBusy(t *testing.T) {
	b := newBed(t, Options{}, ServerOptions{Check: func(net.Conn) error { return errStop }})
	if err := ends(t, client.Options{Dial: b.dial}); !errors.Is(err, protocol.ErrAuth) {
		t.Errorf("checked: %v, want ErrAuth", err)
	}
	b = newBed(t, Options{}, ServerOptions{MaxSubscribers: 1})
	first, second := newCollector(), newCollector()
	stop := start(t, client.Options{Dial: b.dial}, first)
	first.wait(t, "a connection", func() bool { return first.connected > 0 })
	start(t, client.Options{Dial: b.dial}, second)
	second.wait(t, "a refusal", func() bool {
		return len(second.failures) > 0 && errors.Is(second.failures[0], protocol.ErrBusy)
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
	second.wait(t, "the free place", func() bool { return second.connected > 0 })
}

// TestGarbage: what is not the protocol ends the connection and harms nobody else.
func TestGarbage(t *testing.T) {
	b := newBed(t, Options{}, ServerOptions{})
	c := newCollector()
	start(t, client.Options{Dial: b.dial, Since: fromStart()}, c)
	for _, sent := range []string{"GET / HTTP/1.1\r\n\r\n", "\x00\x00\x00\x05\x91\xdd\x08\x00\x00", "\xff\xff\xff\xff", "\x00\x00\x00\x20\x92"} {
		nc, err := b.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write([]byte(sent)); err != nil {
			t.Fatal(err)
		}
		_ = nc.(*net.UnixConn).CloseWrite()
		if _, err := io.Copy(io.Discard, nc); err != nil {
			t.Logf("%q: %v", sent, err)
		}
		nc.Close()
	}
	// After the handshake: a second subscription, then a frame that is too big for a subscriber.
	conn := stuck(t, b, protocol.Subscribe{})
	if _, err := conn.NetConn().Write([]byte("\x00\x0f\x00\x00")); err != nil {
		t.Fatal(err)
	}
	for {
		_, err := conn.Read()
		if errors.Is(err, protocol.ErrProtocol) {
			break
		}
		if err != nil {
			t.Fatalf("got %v, want ErrProtocol", err)
		}
	}
	publish(b.st, 1, 10)
	c.waitLast(t, 10)
	c.exact(t, 1, 10)
}

// TestShutdown: subscribers are told, and come back.
func TestShutdown(t *testing.T) {
	b := newBed(t, Options{}, ServerOptions{})
	c := newCollector()
	start(t, client.Options{Dial: b.dial}, c)
	c.wait(t, "a connection", func() bool { return c.connected > 0 })
	b.stop()
	c.wait(t, "goodbye", func() bool {
		return len(c.failures) > 0 && errors.Is(c.failures[0], protocol.ErrShutdown)
	})
}

// TestSubscriptions: what was not asked for does not come, but is accounted for.
func TestSubscriptions(t *testing.T) {
	b := newBed(t, Options{}, ServerOptions{})
	b.st.Publish([]Record{
		modify("d", "a.go"),
		{Op: protocol.OpCreate, From: protocol.Place{Name: "b.go"}},
		modify("d", "c.txt"),
		modify("d", "a.go"),
		modify("d", "a.go"),
		{Lost: protocol.GapOverflow, Scope: "d"},
		{Op: 77},
		modify("", "z.go"),
	})
	for _, c := range []struct {
		name string
		sub  protocol.Subscribe
		want []string
	}{
		{"all", never(), []string{"modify d/a.go", "create b.go", "modify d/c.txt", "modify d/a.go", "modify d/a.go", "modify z.go"}},
		{"mask", protocol.Subscribe{Mask: notify.Create}, []string{"create b.go"}},
		{"glob", protocol.Subscribe{Include: []string{"d/*"}, Exclude: []string{"*.txt"}}, []string{"modify d/a.go", "modify d/a.go", "modify d/a.go"}},
		{"folded", protocol.Subscribe{Compact: protocol.CompactAlways}, []string{"create b.go", "modify d/c.txt", "modify d/a.go", "modify z.go"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := newCollector()
			start(t, client.Options{Dial: b.dial, Subscribe: c.sub, Since: fromStart()}, got)
			last := uint64(7)
			if c.name == "mask" || c.name == "glob" {
				last = 6 // the gap; what follows is not wanted, and told at the next ping
			}
			got.waitLast(t, last)
			equalNames(t, got.events, c.want...)
			if len(got.gaps) != 1 || got.gaps[0].Scope != "d" || got.gaps[0].Last != 6 {
				t.Errorf("gaps %+v", got.gaps)
			}
		})
	}
}
