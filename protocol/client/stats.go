package client

import (
	"sync/atomic"
	"time"

	"github.com/heraldfs/heraldfs/protocol"
)

// Stats are a subscriber's counters since the start. The zero value is ready; all may be read at any time.
type Stats struct {
	// Connected says that a subscription stands.
	Connected atomic.Bool
	// Connects counts subscriptions, Failures connections that ended or could not be made, Events what came.
	Connects, Failures, Events atomic.Uint64
	// Gaps are by protocol.Reason.
	Gaps [protocol.GapRescan + 1]atomic.Uint64
	// Last is the last sequence that was dealt with.
	Last atomic.Uint64

	err atomic.Pointer[string]
}

// LastError is why the connection ended last, or "".
func (s *Stats) LastError() string {
	if p := s.err.Load(); p != nil {
		return *p
	}
	return ""
}

// Count returns a Handler that counts what h is told.
func (s *Stats) Count(h Handler) Handler { return &counter{h, s} }

type counter struct {
	h Handler
	s *Stats
}

// Connected implements Handler.
func (c *counter) Connected(sub *protocol.Subscribed) error {
	c.s.Connects.Add(1)
	c.s.Connected.Store(true)
	return c.h.Connected(sub)
}

// Disconnected implements Handler.
func (c *counter) Disconnected(err error, retry time.Duration) error {
	text := err.Error()
	c.s.err.Store(&text)
	c.s.Connected.Store(false)
	c.s.Failures.Add(1)
	return c.h.Disconnected(err, retry)
}

// Events implements Handler.
func (c *counter) Events(m *protocol.Events) error {
	err := c.h.Events(m)
	if err == nil {
		c.s.Events.Add(uint64(len(m.Events)))
		c.s.Last.Store(m.Last)
	}
	return err
}

// Gap implements Handler.
func (c *counter) Gap(g *protocol.Gap) error {
	err := c.h.Gap(g)
	if err == nil {
		if int(g.Reason) < len(c.s.Gaps) {
			c.s.Gaps[g.Reason].Add(1)
		}
		c.s.Last.Store(g.Last)
	}
	return err
}
