// Package agents is the host's side of heraldfs agents: it has calls performed by
// the agent of a virtual machine, and notices when there is another one.
//
// # Concepts
//
// A channel leads to one guest; it is a connection that we accept or make. Over a channel come agents,
// one after the other: the agent can be restarted, or the guest, while the channel stays (a
// virtio-serial port is no connection), so a hello may come at any time. The newest agent counts; the one
// before it is gone.
//
// An agent is given calls in messages. What can wait is put off and travels with the next
// call, so that an event costs one round trip.
//
// # Trust
//
// The agent is in a guest that is not trusted. It is believed nothing but its answers to our
// calls, which at worst make its own guest's view wrong. Each answer has a deadline, after which
// the channel is closed; frames are capped, and one message is on the way at a time.
//
// # Locks
//
//	Host.mu (newest agent)
//	  nothing is called with it held
package agents

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/heraldfs/heraldfs/notify/replay"
	"github.com/heraldfs/heraldfs/protocol"
)

// Options configures New. Exactly one of Listen and Dial is required.
type Options struct {
	// Listen makes the listener on which channels come. A new channel replaces the one before.
	Listen func(ctx context.Context) (net.Listener, error)
	// Check, if not nil, refuses a channel that Listen's listener accepted.
	Check func(net.Conn) error
	// Dial makes the channel, again and again.
	Dial func(ctx context.Context) (net.Conn, error)
	// Token, if set, must be known to the agent.
	Token []byte
	// Name is what agents are told of this program.
	Name string
	// CallTimeout bounds the answer to one message of calls; 0 is ten seconds.
	CallTimeout time.Duration
	// PingInterval is the time between two pings; 0 is five seconds. An agent that says nothing for
	// three of them is gone.
	PingInterval time.Duration
	// MinBackoff and MaxBackoff bound the pause before Dial is tried again; 0 is 100
	// milliseconds and 5 seconds.
	MinBackoff, MaxBackoff time.Duration
	// Logger is where to log; nil discards.
	Logger *slog.Logger
}

// Host finds the agents of one guest. It is a replay.Agents for one Replayer at a time.
type Host struct {
	opts Options
	log  *slog.Logger

	mu     sync.Mutex
	newest *agent
	fresh  chan struct{} // closed and replaced when newest changes
}

var _ replay.Agents = (*Host)(nil)

// New makes a Host; Run has to be called.
func New(o Options) *Host {
	if o.CallTimeout <= 0 {
		o.CallTimeout = 10 * time.Second
	}
	if o.PingInterval <= 0 {
		o.PingInterval = 5 * time.Second
	}
	if o.MinBackoff <= 0 {
		o.MinBackoff = 100 * time.Millisecond
	}
	if o.MaxBackoff < o.MinBackoff {
		o.MaxBackoff = max(5*time.Second, o.MinBackoff)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Host{opts: o, log: o.Logger, fresh: make(chan struct{})}
}

// Wait implements replay.Agents. An agent is given away once: one whose Replayer has ended has to connect anew.
func (h *Host) Wait(ctx context.Context) (replay.Agent, error) {
	for {
		h.mu.Lock()
		a, fresh := h.newest, h.fresh
		if a != nil && !a.taken {
			a.taken = true
			h.mu.Unlock()
			return a, nil
		}
		h.mu.Unlock()
		select {
		case <-fresh:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// install makes a the newest agent; nil says that there is none.
func (h *Host) install(a, old *agent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a == nil && h.newest != old {
		return
	}
	h.newest = a
	close(h.fresh)
	h.fresh = make(chan struct{})
}

// Run takes or makes channels until ctx ends, which is no error.
func (h *Host) Run(ctx context.Context) error {
	if h.opts.Listen != nil {
		return h.accept(ctx)
	}
	h.dial(ctx)
	return nil
}

func (h *Host) accept(ctx context.Context) error {
	ln, err := h.opts.Listen(ctx)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	var serving sync.WaitGroup
	defer serving.Wait()
	var old net.Conn
	for {
		nc, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				nc.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept an agent's channel: %w", err)
		}
		if h.opts.Check != nil {
			if err := h.opts.Check(nc); err != nil {
				h.log.Warn("a channel was refused", "err", err)
				nc.Close()
				continue
			}
		}
		if old != nil {
			old.Close()
			serving.Wait()
		}
		old = nc
		serving.Go(func() { h.channel(ctx, nc) })
	}
}

func (h *Host) dial(ctx context.Context) {
	backoff := h.opts.MinBackoff
	for ctx.Err() == nil {
		nc, err := h.opts.Dial(ctx)
		if err == nil {
			if h.channel(ctx, nc) {
				backoff = h.opts.MinBackoff
			}
		} else {
			h.log.Debug("no channel to an agent", "err", err)
		}
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
		}
		backoff = min(2*backoff, h.opts.MaxBackoff)
	}
}

// channel serves the agents that come over nc, and reports whether there was one.
func (h *Host) channel(ctx context.Context, nc net.Conn) (any bool) {
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	link := protocol.NewAgentHost(nc, protocol.Options{
		Agent: h.opts.Name, Token: h.opts.Token, WriteTimeout: h.opts.CallTimeout, IdleTimeout: 3 * h.opts.PingInterval,
	})
	// Whoever is there already does not know that we are new.
	if err := link.Write(&protocol.Hail{}); err != nil {
		return false
	}
	var cur *agent
	gone := func(reason error) {
		if cur != nil {
			h.install(nil, cur)
			cur.end(reason)
			cur = nil
		}
	}
	for {
		m, err := link.Read()
		if err != nil {
			gone(err)
			if ctx.Err() == nil {
				h.log.Debug("an agent's channel has ended", "err", err)
			}
			return any
		}
		switch m := m.(type) {
		case *protocol.Hello:
			gone(errReplaced)
			if err := link.Accept(ctx, m); err != nil {
				h.log.Warn("an agent was refused", "err", err)
				return any
			}
		case *protocol.Attach:
			gone(errReplaced)
			if m.Tid == 0 {
				h.log.Warn("an agent has no thread")
				return any
			}
			cur = newAgent(h, link, nc, m.Tid)
			any = true
			h.install(cur, nil)
		case *protocol.Results:
			if cur == nil || !cur.deliver(m) {
				err := fmt.Errorf("results that nobody asked for: %w", protocol.ErrProtocol)
				gone(err)
				h.log.Warn("an agent was refused", "err", err)
				return any
			}
		case *protocol.Pong:
		default:
			err := fmt.Errorf("message of type %d from an agent: %w", m.Type(), protocol.ErrProtocol)
			gone(err)
			h.log.Warn("an agent was refused", "err", err)
			return any
		}
	}
}

var errReplaced = errors.New("another agent has come")
