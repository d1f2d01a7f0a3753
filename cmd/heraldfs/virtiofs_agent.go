//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/heraldfs/heraldfs/internal/sandbox"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/echo"
	"github.com/heraldfs/heraldfs/protocol/transport"
	"github.com/heraldfs/heraldfs/server/agents"
	"github.com/heraldfs/heraldfs/server/virtiofs"
	"github.com/heraldfs/heraldfs/watcher"
)

// agentFlags are those of `heraldfs virtiofs` that concern the agent in the guest.
type agentFlags struct {
	listen   string
	mask     string
	watcher  string
	security securityFlags
	// only are the flags that say nothing without listen.
	only *pflag.FlagSet
}

func (f *agentFlags) register(all *pflag.FlagSet) {
	fs := pflag.NewFlagSet("agent", pflag.ContinueOnError)
	f.only = fs
	all.StringVar(&f.listen, "agent-listen", "", "`URL` where the agent in the guest is heard: the socket of a virtio-serial port\n(unix:///PATH, to which the monitor connects), vsock://:PORT?cid=N or tcp://HOST:PORT.\nHost changes are then heard in the guest, and the guest caches for an hour")
	fs.StringVarP(&f.mask, "mask", "e", "default", "with --agent-listen: events that are delivered, as of heraldfs mount")
	fs.StringVar(&f.watcher, "watcher", watcher.Auto, "with --agent-listen: how changes of DIR are heard of: auto, fanotify or inotify")
	f.security.register(fs)
	all.AddFlagSet(fs)
}

// idle refuses flags that would do nothing.
func (f *agentFlags) idle() error {
	var given []string
	f.only.VisitAll(func(flag *pflag.Flag) {
		if flag.Changed {
			given = append(given, "--"+flag.Name)
		}
	})
	if len(given) == 0 {
		return nil
	}
	return fmt.Errorf("%s: only with --agent-listen URL, which is missing: give it, or leave them out", strings.Join(given, ", "))
}

// agentChannel is where agents come from, opened while that can still be done.
type agentChannel struct {
	ln   net.Listener
	url  *transport.URL
	sec  *transport.Security
	mask notify.Mask
}

// check refuses what cannot work, before anything is opened.
func (f *virtiofsFlags) checkAgent() error {
	a := &f.agent
	if a.listen == "" {
		return a.idle()
	}
	if f.cache != "auto" {
		return fmt.Errorf("--cache %s: with --agent-listen the agent decides; leave it out", f.cache)
	}
	if mask, bad := notify.ParseMask(a.mask); bad != "" || mask == 0 {
		return fmt.Errorf("--mask: unknown event %q", bad)
	}
	switch a.watcher {
	case watcher.Auto, watcher.Fanotify, watcher.Inotify:
	default:
		return fmt.Errorf("--watcher %q: give auto, fanotify or inotify", a.watcher)
	}
	_, err := transport.Parse(a.listen)
	return err
}

// open listens, or takes the listener that was inherited. It returns nil if no agent is wanted.
func (f *agentFlags) open(ctx context.Context, inherited *os.File) (*agentChannel, error) {
	if f.listen == "" {
		return nil, nil
	}
	u, err := transport.Parse(f.listen)
	if err != nil {
		return nil, err
	}
	sec, err := f.security.load()
	if err != nil {
		return nil, err
	}
	c := &agentChannel{url: u, sec: sec}
	c.mask, _ = notify.ParseMask(f.mask)
	if inherited == nil {
		c.ln, err = u.Listen(ctx, sec)
		return c, err
	}
	defer inherited.Close()
	ln, err := transport.FileListener(inherited)
	if err != nil {
		return nil, fmt.Errorf("inherited --agent-listen: %w", err)
	}
	if ul, ok := ln.(*net.UnixListener); ok {
		ul.SetUnlinkOnClose(false)
	}
	if c.ln, err = u.Adopt(ln, sec); err != nil {
		ln.Close()
		return nil, err
	}
	return c, nil
}

// file is the listener in a form that a child can inherit.
func (f *agentFlags) file(ctx context.Context) (*os.File, func() error, error) {
	u, err := transport.Parse(f.listen)
	if err != nil {
		return nil, nil, err
	}
	sec, err := f.security.load()
	if err != nil {
		return nil, nil, err
	}
	if err := u.Safe(sec); err != nil {
		return nil, nil, err
	}
	// TLS is the child's.
	ln, err := u.ListenPlain(ctx)
	if err != nil {
		return nil, nil, err
	}
	filer, ok := ln.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, nil, errors.Join(fmt.Errorf("%s cannot be given to a confined process; use --sandbox=none", u), ln.Close())
	}
	file, err := filer.File()
	if err != nil {
		return nil, nil, errors.Join(err, ln.Close())
	}
	return file, ln.Close, nil
}

// share watches dir and makes what is shown of it. It needs the privileges for fanotify.
func (f *virtiofsFlags) share(dir string, c *agentChannel, box sandbox.Options) (*agents.Share, error) {
	log := box.Logger
	ledger := echo.New(echo.Options{})
	w, err := watcher.Open(watcher.Options{
		Root: dir, Backend: f.agent.watcher, Mask: c.mask | cohereMask, DropPid: os.Getpid(), Ledger: ledger, Logger: log,
		Dropping: box.Mode != sandbox.None,
	})
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	host := agents.New(agents.Options{
		Listen: func(context.Context) (net.Listener, error) { return c.ln, nil },
		Check:  c.url.Check, Token: c.sec.Token(), Name: "heraldfs virtiofs", Logger: log,
	})
	o := agents.ShareOptions{
		Dir: dir, Events: w, Marker: w.Marker, Bounded: w.Backend == watcher.Inotify, Mask: c.mask,
		Agents: host, Logger: log,
	}
	if !w.HasPid {
		o.Ledger = ledger
	}
	return agents.NewShare(o), nil
}

// serveShare serves machines, and what happens to the share if it has agents, until ctx ends or one of the two fails.
func serveShare(ctx context.Context, s *virtiofs.Server, newFS virtiofs.NewFS, share *agents.Share) error {
	if share == nil {
		return s.Serve(ctx, newFS)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		err := share.Run(ctx)
		cancel() // caches without events would be silently wrong
		ended <- err
	}()
	err := s.Serve(ctx, newFS)
	cancel()
	return errors.Join(err, <-ended)
}
