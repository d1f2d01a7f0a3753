package agents

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/transport"
)

// maxStrangers bounds the channels without an agent. One more ends the oldest of them: who connects and says
// nothing keeps nobody else out.
const maxStrangers = 16

// channel is one connection, and the agents that come over it.
type channel struct {
	nc net.Conn
	// known says that there was an agent; guarded by Host.mu.
	known bool
	// hurry ends a stranger; nil if there is no hurry.
	hurry *time.Timer
}

// Close implements io.Closer.
func (c *channel) Close() error { return c.nc.Close() }

// open begins a channel. On those that a guest's kernel does not keep open while there is no agent, one has to come soon.
func (h *Host) open(nc net.Conn, accepted bool) *channel {
	c := &channel{nc: nc}
	if accepted && nc.LocalAddr().Network() != "unix" {
		c.hurry = time.AfterFunc(h.opts.CallTimeout, func() { nc.Close() })
	}
	var oldest *channel
	h.mu.Lock()
	strangers := 0
	for i := len(h.channels) - 1; i >= 0; i-- {
		if o := h.channels[i]; !o.known {
			if strangers++; strangers == maxStrangers {
				oldest = o
			}
		}
	}
	h.channels = append(h.channels, c)
	h.mu.Unlock()
	if oldest != nil {
		_ = oldest.nc.Close()
	}
	return c
}

func (h *Host) end(c *channel) {
	_ = c.nc.Close()
	if c.hurry != nil {
		c.hurry.Stop()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.channels = slices.DeleteFunc(h.channels, func(o *channel) bool { return o == c })
}

// meet says that there is an agent on c.
func (h *Host) meet(c *channel) {
	if c.hurry != nil {
		c.hurry.Stop()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	c.known = true
}

func (h *Host) accept(ctx context.Context) error {
	ln, err := h.opts.Listen(ctx)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	var serving sync.WaitGroup
	defer serving.Wait()
	for {
		nc, err := transport.Accept(ctx, ln.Accept, h.log)
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
		c := h.open(nc, true)
		serving.Go(func() { h.serve(ctx, c) })
	}
}

// serve serves the agents that come over c, and reports whether there was one.
func (h *Host) serve(ctx context.Context, c *channel) bool {
	defer h.end(c)
	defer context.AfterFunc(ctx, func() { c.nc.Close() })()
	link := protocol.NewAgentHost(c.nc, protocol.Options{
		Agent: h.opts.Name, Token: h.opts.Token, WriteTimeout: h.opts.CallTimeout, IdleTimeout: 3 * h.opts.PingInterval,
	})
	// Whoever is there already does not know that we are new.
	if err := link.Write(&protocol.Hail{}); err != nil {
		return false
	}
	v := visit{host: h, channel: c, link: link}
	for {
		m, err := link.Read()
		if err != nil {
			v.leave(err)
			if ctx.Err() == nil {
				h.log.Debug("an agent's channel has ended", "err", err)
			}
			return v.any
		}
		if err := v.handle(ctx, m); err != nil {
			v.leave(err)
			h.log.Warn("an agent was refused", "err", err)
			return v.any
		}
	}
}

// visit is what has been said on a channel so far.
type visit struct {
	host    *Host
	channel *channel
	link    *protocol.AgentLink
	// greeted says that the hello before was accepted.
	greeted bool
	cur     *agent
	any     bool
}

// leave says that the agent is gone.
func (v *visit) leave(reason error) {
	if v.cur != nil {
		v.host.remove(v.cur)
		v.cur.end(reason)
		v.cur = nil
	}
}

// handle takes one message; an error ends the channel.
func (v *visit) handle(ctx context.Context, m protocol.Message) error {
	switch m := m.(type) {
	case *protocol.Hello:
		v.leave(errReplaced)
		v.greeted = false
		if err := v.link.Accept(ctx, m); err != nil {
			return err
		}
		v.greeted = true
	case *protocol.Attach:
		if !v.greeted {
			return fmt.Errorf("an agent without a hello: %w", protocol.ErrProtocol)
		}
		v.leave(errReplaced)
		if m.Tid == 0 {
			return fmt.Errorf("an agent without a thread: %w", protocol.ErrProtocol)
		}
		v.host.meet(v.channel)
		v.any = true
		v.cur = newAgent(v.host, v.link, v.channel, m.Tid)
		v.host.install(v.cur)
	case *protocol.Results:
		if v.cur == nil || !v.cur.deliver(m) {
			return fmt.Errorf("results that nobody asked for: %w", protocol.ErrProtocol)
		}
	case *protocol.Pong:
	default:
		return fmt.Errorf("message of type %d from an agent: %w", m.Type(), protocol.ErrProtocol)
	}
	return nil
}

var errReplaced = errors.New("another agent has come")
