package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/heraldfs/heraldfs/notify"
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
	ignore         ignoreFlags
	backend        string
	origins        []string
	metrics        metricsFlag
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
	f.ignore.register(fs)
	fs.IntVar(&f.maxSubscribers, "max-subscribers", 1024, "how many may be connected")
	fs.StringArrayVar(&f.origins, "origin", nil, "`NAME=PID|COMM`: call what this process does NAME (PID and its children, or every\nprocess with this name), so that a mount behind a file server knows its own changes; may be repeated")
	fs.StringVar(&f.backend, "watcher", watcher.Auto, backendHelp)
	f.metrics.register(fs)
	f.log.register(fs)
	return cmd
}

// servedRoot is one directory that is served.
type servedRoot struct {
	name string
	dir  string
	// journal is the directory of its journal, if that is kept on disk.
	journal string
	source  *treeSource
	stream  *stream.Stream
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
		if rel, err := filepath.Rel(other.dir, dir); err == nil && filepath.IsLocal(rel) {
			return "", fmt.Errorf("--journal %s is in %s, which is served: give a directory outside", dir, other.dir)
		}
	}
	if r.name == "" {
		return filepath.Join(dir, "default"), nil
	}
	return filepath.Join(dir, "root-"+r.name), nil
}

// checkNumbers refuses bounds that would hold nothing.
func (f *serveFlags) checkNumbers() error {
	for _, n := range []struct {
		flag  string
		value int
	}{{"journal-events", f.journalEvents}, {"journal-size", f.journalMiB}, {"max-subscribers", f.maxSubscribers}} {
		if n.value < 1 {
			return fmt.Errorf("--%s %d: give at least 1", n.flag, n.value)
		}
	}
	return nil
}

func (f *serveFlags) run(ctx context.Context, args []string) (err error) {
	if err := f.checkNumbers(); err != nil {
		return err
	}
	roots, err := f.parseRoots(args)
	if err != nil {
		return err
	}
	allow, err := f.parseAllow(roots)
	if err != nil {
		return err
	}
	if err := checkBackend(f.backend); err != nil {
		return err
	}
	mask, bad := notify.ParseMask(f.events)
	if bad != "" {
		return fmt.Errorf("--events: unknown event %q", bad)
	}
	origins, err := parseOrigins(f.origins)
	if err != nil {
		return err
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
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	report := &serveReport{started: time.Now()}
	stopMetrics, err := f.metrics.start(ctx, report.status, logger)
	if err != nil {
		return err
	}
	defer stopMetrics()
	for _, r := range roots {
		if r.journal, err = f.journalDir(r, roots); err != nil {
			return err
		}
		log := logger.With("served", r.name)
		t, err := tree.Open(tree.Options{Roots: []string{r.dir}, Ignore: f.ignore.patterns, NoIgnoreFiles: f.ignore.noFiles,
			Backend: f.backend, Mask: mask, DropPid: os.Getpid(), Logger: log})
		if err != nil {
			return watchAdvice(err)
		}
		defer t.Close()
		r.stream, err = stream.Open(stream.Options{
			Dir: r.journal, JournalEvents: f.journalEvents, JournalBytes: f.journalMiB << 20, Logger: log,
			Root: t.RootObject(0), Barrier: t.Barrier,
		})
		if err != nil {
			return err
		}
		defer r.stream.Close()
		r.source = newTreeSource(t, r.stream.Ready)
		r.source.wanted = r.stream.WantsState
		if len(origins.rules) > 0 {
			r.source.origin = newOriginCache(origins).name
		}
	}
	if err := origins.check(roots, logger); err != nil {
		return err
	}
	report.watches(roots)
	s := &serving{flags: f, log: logger, sec: sec, roots: roots, allow: allow, urls: urls, report: report, origins: origins}
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
