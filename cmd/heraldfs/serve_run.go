package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/transport"
	"github.com/heraldfs/heraldfs/server/stream"
)

// serving is one run of `heraldfs serve`.
type serving struct {
	flags   *serveFlags
	log     *slog.Logger
	sec     *transport.Security
	roots   []*servedRoot
	allow   map[string][]string
	urls    []*transport.URL
	origins originRules
	// report is told how far we are.
	report *serveReport
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
		s.report.listens(server, l.name)
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
	signal.Notify(c, syscall.SIGHUP)
	defer signal.Stop(c)
	for {
		select {
		case <-ctx.Done():
			return
		case <-c:
			daemon.SdNotify(false, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
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
	for _, f := range activation.Files(true) {
		ln, err := transport.FileListener(f)
		f.Close()
		if err != nil {
			return list, fmt.Errorf("socket from systemd: %w", err)
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
		Conn:           protocol.Options{Agent: agent(), Caps: stream.Caps()},
		MaxSubscribers: s.flags.maxSubscribers, Logger: s.log,
		Allow: func(c net.Conn, root string) bool {
			subjects, limited := s.allow[root]
			return !limited || slices.Contains(subjects, transport.Subject(c))
		},
	}
	o.Origin = s.origins.judge
	if u.Network != "unix" {
		o.Conn.Token = s.sec.Token()
	} else {
		// Check lets only root and our own user in.
		o.Status = func(net.Conn) ([]byte, error) { return s.report.status().JSON(), nil }
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
