//go:build linux

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/transport"
	"github.com/heraldfs/heraldfs/server/foreign"
)

// shareFlags are the flags of `mount` that matter with --events only.
type shareFlags struct {
	url      string
	origin   string
	settle   time.Duration
	offline  time.Duration
	security securityFlags
}

func (f *shareFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.url, "events", "", "take events from a heraldfs serve at `URL`; SOURCE is our view of its directory.\n?root=NAME chooses one of several, ?origin=NAME is --origin")
	fs.StringVar(&f.origin, "origin", "", "--events: what the server calls the file server of SOURCE (serve --origin `NAME`=...)")
	fs.DurationVar(&f.settle, "settle-timeout", 2*time.Second, "--events: how long an event may wait for SOURCE to show what it tells")
	fs.DurationVar(&f.offline, "offline-cache", time.Second, "--events: how long the guest may keep what it is told without a connection")
	f.security.register(fs)
}

// unused refuses flags that would have no effect.
func (f *shareFlags) unused(set *pflag.FlagSet) error {
	for _, name := range []string{"origin", "settle-timeout", "offline-cache", "tls-cert", "tls-key", "tls-ca", "token-file"} {
		if set.Changed(name) {
			return fmt.Errorf("--%s goes with --events", name)
		}
	}
	return nil
}

// share makes the subscription.
func (f *shareFlags) share(mask notify.Mask, logger *slog.Logger) (*foreign.Share, error) {
	u, err := transport.Parse(f.url)
	if err != nil {
		return nil, fmt.Errorf("--events: %w", err)
	}
	origin := f.origin
	if u.Origin != "" {
		if origin != "" && origin != u.Origin {
			return nil, fmt.Errorf("--events has origin %q, --origin says %q", u.Origin, origin)
		}
		origin = u.Origin
	}
	if len(origin) > protocol.MaxOrigin || strings.ContainsRune(origin, 0) {
		return nil, fmt.Errorf("--origin %q: too long", origin)
	}
	if f.settle <= 0 || f.offline <= 0 {
		return nil, fmt.Errorf("--settle-timeout and --offline-cache: give a time such as 2s")
	}
	sec, err := f.security.load()
	if err == nil {
		err = u.SafeToDial(sec)
	}
	if err != nil {
		return nil, err
	}
	o := foreign.Options{
		Dial: func(ctx context.Context) (net.Conn, error) { return u.Dial(ctx, sec) },
		Conn: protocol.Options{Agent: agent()}, Root: u.Root, Mask: mask | cohereMask, Origin: origin,
		SettleTimeout: f.settle, OfflineCache: f.offline, Logger: logger.With("server", u.String()),
	}
	if u.Network != "unix" {
		o.Conn.Token = sec.Token()
	}
	return foreign.New(o), nil
}
