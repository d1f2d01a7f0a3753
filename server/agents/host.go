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
// Whoever connects is a stranger until it has passed TLS, if there is any, and the token, has said hello and named
// its thread; only then does it replace the agent on another channel. Strangers are few at a time, and on TCP
// and vsock have little time.
//
// The agent is in a guest that is not trusted. It is believed nothing but its answers to our
// calls, which at worst make its own guest's view wrong. Each answer has a deadline, after which
// the channel is closed; frames are capped, and one message is on the way at a time.
//
// # Locks
//
//	Host.mu (newest agent, channels)
//	  nothing is called with it held
package agents

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/heraldfs/heraldfs/notify/replay"
)

// Options configures New. Exactly one of Listen and Dial is required.
type Options struct {
	// Listen makes the listener on which channels come. An agent on a new channel replaces the one before; a
	// channel on which there is no agent yet replaces nothing.
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
	// channels are those that are open, the oldest first.
	channels []*channel
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

// install makes a the newest agent, and ends the channel of the one before if that is another.
func (h *Host) install(a *agent) {
	h.mu.Lock()
	old := h.newest
	h.setNewestLocked(a)
	h.mu.Unlock()
	if old != nil && old.ch != a.ch {
		_ = old.ch.Close()
	}
}

// remove says that a is gone.
func (h *Host) remove(a *agent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.newest == a {
		h.setNewestLocked(nil)
	}
}

func (h *Host) setNewestLocked(a *agent) {
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

func (h *Host) dial(ctx context.Context) {
	backoff := h.opts.MinBackoff
	for ctx.Err() == nil {
		nc, err := h.opts.Dial(ctx)
		if err == nil {
			if h.serve(ctx, h.open(nc, false)) {
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
