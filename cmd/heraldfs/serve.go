package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/transport"
	"github.com/heraldfs/heraldfs/server/stream"
	"github.com/heraldfs/heraldfs/watcher"
	"github.com/heraldfs/heraldfs/watcher/tree"
)

// serveFlags are the flags of `heraldfs serve`.
type serveFlags struct {
	listen         []string
	roots          []string
	allow          []string
	security       securityFlags
	journal        string
	journalEvents  int
	journalMiB     int
	events         string
	maxSubscribers int
	backend        string
	log            logFlags
}

// securityFlags are shared by `serve` and `watch`.
type securityFlags struct {
	cert, key, ca, token string
}

func (s *securityFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&s.cert, "tls-cert", "", "our certificate (PEM `file`), for tcp:// and vsock://")
	fs.StringVar(&s.key, "tls-key", "", "its key (PEM `file`)")
	fs.StringVar(&s.ca, "tls-ca", "", "who signs the other side's certificates (PEM `file`)")
	fs.StringVar(&s.token, "token-file", "", "a `file` with a secret of 16 bytes or more that both sides know")
}

func (s *securityFlags) load() (*transport.Security, error) {
	sec := &transport.Security{CertFile: s.cert, KeyFile: s.key, CAFile: s.ca, TokenFile: s.token}
	return sec, sec.Load()
}

func newServeCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve [flags] [DIR]",
		Short: "Tell other machines what happens in directories",
		Long: `Watch directories and tell every change to whoever subscribes: heraldfs watch URL, on this machine or
another one. A subscriber whose connection breaks continues where it was; what cannot be told any
more is told as a gap, with the directory to compare.

DIR is the root for subscribers who name none; each --root NAME=DIR is one that they choose
with ?root=NAME. A subscriber hears of what is below its root and of nothing else.

Where to listen (--listen, may be repeated):

  unix:///PATH      for root and the user that we run as. The default, at ` + "$XDG_RUNTIME_DIR/heraldfs.sock" + `
                    or else /run/heraldfs.sock.
  tcp://HOST:PORT   with --tls-cert, --tls-key and --tls-ca: TLS 1.3, certificates on both sides. On a loopback
                    address --token-file will do. Otherwise refused.
  vsock://:PORT     for virtual machines: with certificates, a token, or ?cid=N,M for the guests that may.

Sockets from systemd are taken instead if there are any. SIGHUP reads the certificates again.
As root there is nothing to set up (fanotify); otherwise each directory is watched with inotify.`,
		Example: `  # on this machine
  heraldfs serve ./src
  heraldfs watch unix:

  # to other machines; each side has a certificate
  heraldfs serve --listen tcp://0.0.0.0:7433 --tls-cert host.pem --tls-key host.key --tls-ca ca.pem /srv

  # two roots; builds may see only one of them
  heraldfs serve --root src=/srv/src --root logs=/var/log --allow logs=ops.example ...

  # to a virtual machine, over restarts of this server
  heraldfs serve --listen 'vsock://:7433?cid=3' --journal /var/lib/heraldfs /srv`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd.Context(), args) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringArrayVarP(&f.listen, "listen", "l", nil, "`URL` to listen on")
	fs.StringArrayVar(&f.roots, "root", nil, "a further root, as `NAME=DIR`")
	fs.StringArrayVar(&f.allow, "allow", nil, "`NAME=SUBJECT`: only a certificate with this common name may see the root; may be repeated")
	f.security.register(fs)
	fs.StringVar(&f.journal, "journal", "", "keep the journal in this `directory`, over restarts (default in memory)")
	fs.IntVar(&f.journalEvents, "journal-events", 1<<18, "how many changes of a root the journal holds")
	fs.IntVar(&f.journalMiB, "journal-size", 128, "how many `MiB` of memory it may take")
	fs.StringVarP(&f.events, "events", "e", "default", "what is heard of, comma separated: default is every change, all adds opens and reads")
	fs.IntVar(&f.maxSubscribers, "max-subscribers", 1024, "how many may be connected")
	fs.StringVar(&f.backend, "watcher", watcher.Auto, "how changes are heard of: auto, fanotify or inotify")
	f.log.register(fs)
	return cmd
}

// servedRoot is one directory that is served.
type servedRoot struct {
	name   string
	dir    string
	source *treeSource
	stream *stream.Stream
}

func (f *serveFlags) parseRoots(args []string) ([]*servedRoot, error) {
	var roots []*servedRoot
	if len(args) == 1 {
		roots = append(roots, &servedRoot{dir: args[0]})
	}
	for _, arg := range f.roots {
		name, dir, ok := strings.Cut(arg, "=")
		if !ok || name == "" || dir == "" || strings.Contains(name, "/") || name == "." || name == ".." || len(name) > 200 {
			return nil, fmt.Errorf("--root %q: give NAME=DIR, and no slash in NAME", arg)
		}
		if slices.ContainsFunc(roots, func(r *servedRoot) bool { return r.name == name }) {
			return nil, fmt.Errorf("--root %q: the name is taken", arg)
		}
		roots = append(roots, &servedRoot{name: name, dir: dir})
	}
	if len(roots) == 0 {
		return nil, errors.New("nothing to serve: give a DIR, or --root NAME=DIR")
	}
	for _, r := range roots {
		real, err := filepath.EvalSymlinks(r.dir)
		if err == nil {
			r.dir, err = filepath.Abs(real)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot serve %s: %w", r.dir, err)
		}
		if st, err := os.Stat(r.dir); err != nil || !st.IsDir() {
			return nil, fmt.Errorf("cannot serve %s: it is no directory", r.dir)
		}
	}
	return roots, nil
}

// parseAllow returns the subjects that may see each root; a root without any is seen by all.
func (f *serveFlags) parseAllow(roots []*servedRoot) (map[string][]string, error) {
	allow := make(map[string][]string)
	for _, arg := range f.allow {
		name, subject, ok := strings.Cut(arg, "=")
		if !ok || subject == "" || !slices.ContainsFunc(roots, func(r *servedRoot) bool { return r.name == name }) {
			return nil, fmt.Errorf("--allow %q: give NAME=SUBJECT, with the NAME of a --root", arg)
		}
		allow[name] = append(allow[name], subject)
	}
	return allow, nil
}

// journalDir is where a root's journal is, "" for none. A journal below a root would tell of itself
// for ever.
func (f *serveFlags) journalDir(r *servedRoot, roots []*servedRoot) (string, error) {
	if f.journal == "" {
		return "", nil
	}
	dir, err := filepath.Abs(f.journal)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("--journal: %w", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", fmt.Errorf("--journal: %w", err)
	}
	for _, other := range roots {
		if rel, err := filepath.Rel(other.dir, dir); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return "", fmt.Errorf("--journal %s is in %s, which is served: give a directory outside", dir, other.dir)
		}
	}
	if r.name == "" {
		return filepath.Join(dir, "default"), nil
	}
	return filepath.Join(dir, "root-"+r.name), nil
}

func (f *serveFlags) run(ctx context.Context, args []string) (err error) {
	roots, err := f.parseRoots(args)
	if err != nil {
		return err
	}
	allow, err := f.parseAllow(roots)
	if err != nil {
		return err
	}
	mask, bad := notify.ParseMask(f.events)
	if bad != "" {
		return fmt.Errorf("--events: unknown event %q", bad)
	}
	sec, err := f.security.load()
	if err != nil {
		return err
	}
	logger, closeLog, err := f.log.open(false)
	if err != nil {
		return err
	}
	defer closeLog()
	urls, err := f.urls(sec)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	for _, r := range roots {
		dir, err := f.journalDir(r, roots)
		if err != nil {
			return err
		}
		log := logger.With("served", r.name)
		r.stream, err = stream.Open(stream.Options{
			Dir: dir, JournalEvents: f.journalEvents, JournalBytes: f.journalMiB << 20, Logger: log,
		})
		if err != nil {
			return err
		}
		defer r.stream.Close()
		t, err := tree.Open(tree.Options{Roots: []string{r.dir}, Backend: f.backend, Mask: mask, DropPid: os.Getpid(), Logger: log})
		if err != nil {
			return watchAdvice(err)
		}
		defer t.Close()
		r.source = newTreeSource(t)
	}
	s := &serving{flags: f, log: logger, sec: sec, roots: roots, allow: allow, urls: urls}
	return s.run(ctx)
}

// urls parses --listen. Nothing unsafe gets past it, even if a watch takes long to set up.
func (f *serveFlags) urls(sec *transport.Security) ([]*transport.URL, error) {
	list := f.listen
	if len(list) == 0 {
		list = []string{"unix:"}
	}
	var urls []*transport.URL
	for _, s := range list {
		u, err := transport.Parse(s)
		if err == nil {
			err = u.Safe(sec)
		}
		if err != nil {
			return nil, fmt.Errorf("--listen: %w", err)
		}
		urls = append(urls, u)
	}
	return urls, nil
}

// serving is one run of `heraldfs serve`.
type serving struct {
	flags *serveFlags
	log   *slog.Logger
	sec   *transport.Security
	roots []*servedRoot
	allow map[string][]string
	urls  []*transport.URL
}

// run watches first and listens when nothing is missed any more; at the end subscribers are told
// before the watching stops.
func (s *serving) run(ctx context.Context) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	watching, stopWatching := context.WithCancel(context.WithoutCancel(ctx))
	var watch, serve sync.WaitGroup
	defer watch.Wait()
	defer stopWatching()
	defer serve.Wait()
	defer end(nil)
	for _, r := range s.roots {
		watch.Go(func() {
			if err := r.stream.Run(watching, r.source); err != nil {
				end(fmt.Errorf("watch %s: %w", r.dir, err))
			}
		})
	}
	for _, r := range s.roots {
		select {
		case <-r.source.ready:
			r.stream.Ready()
		case <-ctx.Done():
			return cause(ctx)
		}
	}
	listeners, err := s.listeners(ctx)
	if err != nil {
		return err
	}
	for _, l := range listeners {
		server := stream.NewServer(s.options(l.url))
		serve.Go(func() {
			if err := server.Serve(ctx, l.Listener); err != nil {
				end(err)
			}
		})
		s.log.Info("listening", "url", l.name)
	}
	daemon.SdNotify(false, daemon.SdNotifyReady)
	s.hup(ctx)
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	return cause(ctx)
}

// cause is why ctx ended, nil for a signal.
func cause(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// hup reads the certificates again at each SIGHUP until ctx ends.
func (s *serving) hup(ctx context.Context) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGHUP)
	defer signal.Stop(c)
	for {
		select {
		case <-ctx.Done():
			return
		case <-c:
			daemon.SdNotify(false, daemon.SdNotifyReloading+"\nMONOTONIC_USEC="+daemon.SdNotifyMonotonicUsec())
			if err := s.sec.Reload(); err != nil {
				s.log.Error("certificates stay as they were", "err", err)
			} else {
				s.log.Info("certificates read")
			}
			daemon.SdNotify(false, daemon.SdNotifyReady)
		}
	}
}

// listener is an open one, and the URL whose rules hold for it.
type listener struct {
	net.Listener
	url  *transport.URL
	name string
}

// listeners takes what systemd has opened, and opens the URLs if that is nothing.
func (s *serving) listeners(ctx context.Context) (list []listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range list {
				l.Close()
			}
		}
	}()
	inherited, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("sockets from systemd: %w", err)
	}
	for _, ln := range inherited {
		if ln == nil {
			continue // a socket of another kind
		}
		safe, u, err := transport.Adopt(ln, s.sec)
		if err != nil {
			ln.Close()
			return list, fmt.Errorf("socket from systemd: %w", err)
		}
		list = append(list, listener{safe, u, u.String()})
	}
	if len(list) > 0 {
		return list, nil
	}
	for _, u := range s.urls {
		ln, err := u.Listen(ctx, s.sec)
		if err != nil {
			return list, err
		}
		name := u.String()
		if u.Network == "tcp" {
			name = "tcp://" + ln.Addr().String() // the port may have been 0
		}
		list = append(list, listener{ln, u, name})
	}
	return list, nil
}

func (s *serving) options(u *transport.URL) stream.ServerOptions {
	o := stream.ServerOptions{
		Streams: make(map[string]*stream.Stream), Check: u.Check,
		Conn:           protocol.Options{Agent: agent()},
		MaxSubscribers: s.flags.maxSubscribers, Logger: s.log,
		Allow: func(c net.Conn, root string) bool {
			subjects, limited := s.allow[root]
			return !limited || slices.Contains(subjects, transport.Subject(c))
		},
	}
	if u.Network != "unix" {
		o.Conn.Token = s.sec.Token()
	}
	for _, r := range s.roots {
		o.Streams[r.name] = r.stream
	}
	if len(s.roots) == 1 && s.roots[0].name != "" && s.allow[s.roots[0].name] == nil {
		o.Streams[""] = s.roots[0].stream
	}
	return o
}

// agent is what we call ourselves to peers.
func agent() string { return "heraldfs" }
