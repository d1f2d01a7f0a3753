package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/heraldfs/heraldfs/internal/ignore"
	"github.com/heraldfs/heraldfs/internal/record"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/client"
	"github.com/heraldfs/heraldfs/protocol/transport"
	"github.com/heraldfs/heraldfs/watcher/tree"
)

const remoteHelp = `A URL is a root of heraldfs serve, on this machine or another one: unix:///PATH (unix: for the default
path), tcp://HOST:PORT or vsock://CID:PORT, with ?root=NAME if the server has several. Formats and
filters are the same; seq is the server's number of the change, and paths begin at "./". When the
connection breaks it is made again, and goes on after the last change that was printed. json has
records of that: connected (stream, seq: the last change before what follows), disconnected (error,
retry_ms) and gap (first, last, path: the directory to compare with the disk, reason). The other
formats tell of a gap by a rescan, and of connections on standard error.`

const compactDefault = "behind"

// remoteFlags are the flags of `watch` that matter for a URL only.
type remoteFlags struct {
	since    string
	compact  string
	security securityFlags
}

func (f *remoteFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.since, "since", "", "URL: begin after the change with this number (`SEQ or STREAM:SEQ`), if the\nserver still has it; with the STREAM of a connected record it is sure to be meant")
	fs.StringVar(&f.compact, "compact", compactDefault, "URL: fold changes of one name: never, behind (if we fall far behind) or always")
	f.security.register(fs)
}

// url returns the URL among the arguments, nil if they are paths.
func (f *remoteFlags) url(args []string) (*transport.URL, error) {
	for _, arg := range args {
		if !transport.IsURL(arg) {
			continue
		}
		if len(args) > 1 {
			return nil, fmt.Errorf("%s: a URL is watched alone", arg)
		}
		return transport.Parse(arg)
	}
	return nil, nil
}

// unused refuses flags that would have no effect on paths.
func (f *remoteFlags) unused() error {
	for _, flag := range []struct {
		name string
		set  bool
	}{
		{"since", f.since != ""}, {"compact", f.compact != compactDefault}, {"tls-cert", f.security.cert != ""},
		{"tls-key", f.security.key != ""}, {"tls-ca", f.security.ca != ""}, {"token-file", f.security.token != ""},
	} {
		if flag.set {
			return fmt.Errorf("--%s goes with a URL", flag.name)
		}
	}
	return nil
}

func (f *remoteFlags) compaction() (protocol.Compaction, error) {
	switch f.compact {
	case compactDefault:
		return protocol.CompactBehind, nil
	case "never":
		return protocol.CompactNever, nil
	case "always":
		return protocol.CompactAlways, nil
	}
	return 0, fmt.Errorf("--compact %q: give never, behind or always", f.compact)
}

// position understands --since; nil is now.
func (f *remoteFlags) position() (*client.Position, error) {
	if f.since == "" {
		return nil, nil
	}
	pos := &client.Position{}
	number := f.since
	if stream, rest, ok := strings.Cut(f.since, ":"); ok {
		id, err := hex.DecodeString(stream)
		if err != nil || len(id) != protocol.StreamSize {
			return nil, fmt.Errorf("--since %q: STREAM has %d hexadecimal digits", f.since, 2*protocol.StreamSize)
		}
		pos.Stream, number = id, rest
	}
	var err error
	if pos.Seq, err = strconv.ParseUint(number, 10, 64); err != nil {
		return nil, fmt.Errorf("--since %q: give a number, or STREAM:SEQ as a connected record has it", f.since)
	}
	return pos, nil
}

// runURL is run for a URL.
func (f *watchFlags) runURL(ctx context.Context, u *transport.URL, filter *record.Filter, mask notify.Mask, stdout, stderr io.Writer) error {
	if f.noRecursive {
		return errors.New("--no-recursive does not go with a URL; choose with --include")
	}
	if f.ignore.noFiles {
		return errors.New("--no-ignore-files does not go with a URL; heraldfs serve has it")
	}
	since, err := f.remote.position()
	if err != nil {
		return err
	}
	compact, err := f.remote.compaction()
	if err != nil {
		return err
	}
	sec, err := f.remote.security.load()
	if err == nil {
		err = u.SafeToDial(sec)
	}
	if err != nil {
		return err
	}
	out, err := f.outlet([]record.Root{{Arg: ".", IsDir: true}}, filter, stdout)
	if err != nil {
		return err
	}
	defer out.close()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	s := f.session(out, stderr)
	h := &urlHandler{s: s, json: f.asJSON(), url: u, ignore: ignore.Top(f.ignore.patterns)}
	o := client.Options{
		Dial:      func(ctx context.Context) (net.Conn, error) { return u.Dial(ctx, sec) },
		Conn:      protocol.Options{Agent: agent()},
		Subscribe: protocol.Subscribe{Root: u.Root, Mask: mask, Compact: compact},
		Since:     since,
		Logger:    out.log,
	}
	if u.Network != "unix" {
		o.Conn.Token = sec.Token()
	}
	err = s.run(ctx, func(ctx context.Context, _ func([]tree.Record)) error {
		return client.Run(ctx, o, h)
	}, out.opts)
	if errors.Is(err, errOver) {
		return nil
	}
	return err
}

// errOver ends a subscription that has no more to print.
var errOver = errors.New("enough was printed")

// urlHandler prints what a subscription brings.
type urlHandler struct {
	s    *watchSession
	json bool
	url  *transport.URL
	// ignore is what was asked to be left out here, on top of what the server leaves out.
	ignore *ignore.Scope
	// told says that the server was lost or never found, and that somebody has been told.
	told bool
	seen bool // it was connected once
}

// state is a record about the connection.
type state struct {
	Time   string  `json:"time"`
	Type   string  `json:"type"`
	Stream string  `json:"stream,omitempty"`
	Seq    *uint64 `json:"seq,omitempty"`
	Error  string  `json:"error,omitempty"`
	Retry  *int64  `json:"retry_ms,omitempty"`
	First  *uint64 `json:"first,omitempty"`
	Last   *uint64 `json:"last,omitempty"`
	Path   string  `json:"path,omitempty"`
	PathB  []byte  `json:"path_b64,omitempty"`
	Reason string  `json:"reason,omitempty"`
}

func (h *urlHandler) print(st *state) error {
	st.Time = time.Now().UTC().Format(time.RFC3339Nano)
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	end := byte('\n')
	if h.s.flags.null {
		end = 0
	}
	if err := h.s.writer.Flush(); err != nil {
		return err
	}
	_, err = h.s.pump.Write(append(b, end))
	return err
}

// over is what a Handler returns when the session has ended.
func (h *urlHandler) over(err error) error {
	if err == nil && h.s.done {
		return errOver
	}
	return err
}

// Connected implements client.Handler.
func (h *urlHandler) Connected(sub *protocol.Subscribed) error {
	h.told = false
	if h.json {
		last := sub.Next - 1
		if err := h.print(&state{Type: "connected", Stream: hex.EncodeToString(sub.Stream), Seq: &last}); err != nil {
			return err
		}
	}
	if h.seen {
		h.s.say("Connected again.")
		return nil
	}
	h.seen = true
	h.s.writer.Number(sub.Next - 1)
	h.s.emit([]tree.Record{{Type: tree.TypeReady, IsDir: true, Path: ".", Time: time.Now()}})
	return nil
}

// Disconnected implements client.Handler.
func (h *urlHandler) Disconnected(err error, retry time.Duration) error {
	if h.json {
		ms := retry.Milliseconds()
		return h.print(&state{Type: "disconnected", Error: err.Error(), Retry: &ms})
	}
	if !h.told {
		h.told = true
		h.s.say(fmt.Sprintf("No connection to %s: %v; trying again.", h.url, err))
	}
	return nil
}

// Events implements client.Handler.
func (h *urlHandler) Events(m *protocol.Events) error {
	told := false
	for i := range m.Events {
		if h.s.done {
			break // and print what was enough
		}
		ev := &m.Events[i]
		r := tree.Record{Type: typeOf(ev.Op), IsDir: ev.IsDir, Path: ev.From.Path(), Cookie: ev.Cookie, Pid: ev.Pid, Time: ev.Time, Origin: ev.Origin}
		if ev.Op == protocol.OpRename || ev.Op == protocol.OpExchange {
			r.OldPath, r.Path = r.Path, ev.To.Path()
		}
		h.s.writer.Number(ev.Seq)
		for _, r := range seen(h.ignore, r) {
			told = h.s.one(&r) || told
		}
	}
	if err := h.s.writer.Flush(); err != nil {
		return err
	}
	if told && h.s.timeout != nil {
		h.s.timeout.Reset(h.s.limit())
	}
	return h.over(nil)
}

// Gap implements client.Handler.
func (h *urlHandler) Gap(g *protocol.Gap) error {
	path := g.Scope
	if path == "" {
		path = "."
	}
	if h.json {
		st := &state{Type: "gap", First: &g.First, Last: &g.Last, Path: strings.ToValidUTF8(path, "\uFFFD"), Reason: g.Reason.String()}
		if st.Path != path {
			st.PathB = []byte(path)
		}
		return h.print(st)
	}
	h.s.say(fmt.Sprintf("Changes %d to %d were not told (%s).", g.First, g.Last, g.Reason))
	h.s.writer.Number(g.Last)
	h.s.emit([]tree.Record{{Type: tree.TypeRescan, IsDir: true, Path: path, Time: time.Now()}})
	return h.over(nil)
}
