// Package client is a subscriber that stays: it connects, takes a root's changes, and when
// the connection breaks it connects again and continues after the last change that its
// Handler has dealt with.
//
// # What is promised
//
// Each sequence number is handed to the Handler exactly once, in order, as part of the
// range of an Events or a Gap, for as long as the server's stream is the same. If it
// is not, a Gap says so. Every range is checked: a server that skips one is left with
// protocol.ErrSequence, and asked again.
//
// # Goroutines
//
// One reads, so that pings are answered while a Handler takes its time; it queues at most a
// window of messages, which the server does not exceed. One pings, if asked to. Handler and acks are Run's own.
package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/heraldfs/heraldfs/protocol"
)

// Position is a place in a stream: everything up to Seq has been dealt with.
type Position struct {
	// Stream is the numbering; empty stands for whatever the server has.
	Stream []byte
	Seq    uint64
}

// Options for Run. Dial is required.
type Options struct {
	// Dial makes a connection, TLS included; it must honour ctx.
	Dial func(ctx context.Context) (net.Conn, error)
	// Conn is for the handshake.
	Conn protocol.Options
	// Subscribe is what is asked for. Its Resume, From and Stream are set from Since.
	Subscribe protocol.Subscribe
	// Since is where to begin; nil is now.
	Since *Position
	// MinBackoff and MaxBackoff bound the pause before another attempt; it
	// doubles. 0 is 100 milliseconds and 10 seconds.
	MinBackoff time.Duration
	MaxBackoff time.Duration
	// Ping is how often the server is asked for a sign of life; 0 is never. With Conn.IdleTimeout, which is to be
	// longer, it bounds how long a connection that is dead without a word is believed in.
	Ping time.Duration
	// Barriers, if set, can be waited for. Conn.Caps must have protocol.CapBarrier.
	Barriers *Barriers
	// Logger is told of connections; nil is silent.
	Logger *slog.Logger
}

// Handler is told what comes, by one goroutine. What it returns an error for has not been
// dealt with, and ends Run with that error.
type Handler interface {
	// Connected tells that a subscription stands. What follows begins at s.Next.
	Connected(s *protocol.Subscribed) error
	// Disconnected tells that it does not, or that an attempt failed, and when the next one is.
	Disconnected(err error, retry time.Duration) error
	Events(*protocol.Events) error
	Gap(*protocol.Gap) error
}

// errHandler marks an error as the Handler's.
type errHandler struct{ err error }

func (e errHandler) Error() string { return e.err.Error() }
func (e errHandler) Unwrap() error { return e.err }

type runner struct {
	Options
	h   Handler
	pos *Position // what has been dealt with; nil until a subscriber that begins now has begun
	// stream and next are the connection's: where its next range must begin.
	stream []byte
	next   uint64
	// settled says that the last connection got as far as a subscription.
	settled bool
}

// Run subscribes until ctx ends, which is no error. It also ends with an error that
// another attempt would not change (a wrong token or root, no common version), and with
// the Handler's.
func Run(ctx context.Context, o Options, h Handler) error {
	if o.MinBackoff <= 0 {
		o.MinBackoff = 100 * time.Millisecond
	}
	if o.MaxBackoff < o.MinBackoff {
		o.MaxBackoff = max(10*time.Second, o.MinBackoff)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Subscribe.Window == 0 || o.Subscribe.Window > protocol.MaxWindow {
		o.Subscribe.Window = protocol.DefaultWindow
	}
	if o.Barriers == nil {
		o.Barriers = &Barriers{}
	}
	defer o.Barriers.end()
	r := &runner{Options: o, h: h}
	if o.Since != nil {
		r.pos = &Position{Stream: o.Since.Stream, Seq: o.Since.Seq}
	}
	backoff := o.MinBackoff
	for {
		r.settled = false
		err := r.connection(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var mine errHandler
		if errors.As(err, &mine) {
			return mine.err
		}
		if permanent(err) {
			return err
		}
		if r.settled {
			backoff = o.MinBackoff
		}
		pause := backoff/2 + rand.N(backoff/2+1)
		o.Logger.Info("disconnected", "err", err, "retry", pause)
		if err := h.Disconnected(err, pause); err != nil {
			return err
		}
		if !wait(ctx, pause) {
			return nil
		}
		backoff = min(2*backoff, o.MaxBackoff)
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func permanent(err error) bool {
	var e *protocol.Error
	if errors.As(err, &e) {
		return e.Permanent()
	}
	return errors.Is(err, protocol.ErrVersion) || errors.Is(err, protocol.ErrAuth) || errors.Is(err, protocol.ErrNotHerald)
}

// connection is one connection from dial to its end.
func (r *runner) connection(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait() // after the connection was closed, which ends a write
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	nc, err := r.Dial(ctx)
	if err != nil {
		return err
	}
	c, err := protocol.Client(ctx, nc, r.Conn)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	defer c.Close()

	sub := r.Subscribe
	if r.pos != nil {
		sub.Resume, sub.From, sub.Stream = true, r.pos.Seq, r.pos.Stream
	}
	if err := c.Write(&sub); err != nil {
		return explain(c, err)
	}
	if r.Ping > 0 {
		wg.Go(func() { r.ping(ctx, c) })
	}
	queue := make(chan protocol.Message, sub.Window+1)
	done := make(chan error, 1)
	go func() {
		defer close(queue)
		done <- r.read(c, queue)
	}()
	err = r.take(c, queue)
	r.Barriers.disconnected()
	_ = c.Close()
	for range queue { // let the reader end
	}
	if readErr := <-done; err == nil {
		err = readErr
	}
	return err
}

// ping asks for signs of life until ctx or the connection ends. The answers need no more than to come. Barriers do
// not use the id 0.
func (r *runner) ping(ctx context.Context, c *protocol.Conn) {
	every := time.NewTicker(r.Ping)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
			if c.Write(&protocol.Ping{}) != nil {
				return // the reader says why
			}
		}
	}
}

// explain prefers what the server had to say to the fact that it has closed.
func explain(c *protocol.Conn, err error) error {
	var said *protocol.Error
	if _, readErr := c.Read(); errors.As(readErr, &said) {
		return said
	}
	return err
}

// read fills the queue until the connection ends.
func (r *runner) read(c *protocol.Conn, queue chan<- protocol.Message) error {
	for {
		m, err := c.Read()
		if err != nil {
			return err
		}
		switch p := m.(type) {
		case *protocol.Pong:
			r.Barriers.pong(p)
		case *protocol.Subscribed, *protocol.Events, *protocol.Gap:
			select {
			case queue <- m:
			default:
				return fmt.Errorf("server exceeds the window: %w", protocol.ErrProtocol)
			}
		}
	}
}

// take hands the queue to the Handler. A nil result means that the queue has ended.
func (r *runner) take(c *protocol.Conn, queue <-chan protocol.Message) error {
	subscribed := false
	for m := range queue {
		var err error
		switch m := m.(type) {
		case *protocol.Subscribed:
			if subscribed {
				return fmt.Errorf("subscribed twice: %w", protocol.ErrProtocol)
			}
			subscribed = true
			err = r.subscribed(c, m)
		case *protocol.Events:
			err = r.covered(c, subscribed, m.First, m.Last, func() error { return r.h.Events(m) })
		case *protocol.Gap:
			err = r.covered(c, subscribed, m.First, m.Last, func() error { return r.h.Gap(m) })
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) subscribed(c *protocol.Conn, s *protocol.Subscribed) error {
	if len(s.Stream) != protocol.StreamSize || s.Next == 0 {
		return fmt.Errorf("subscribed without a stream: %w", protocol.ErrProtocol)
	}
	if p := r.pos; p != nil && bytes.Equal(p.Stream, s.Stream) && s.Next != p.Seq+1 && s.Next != 1 {
		return fmt.Errorf("continued at %d instead of %d: %w", s.Next, p.Seq+1, protocol.ErrSequence)
	}
	r.stream, r.next = s.Stream, s.Next
	if r.pos == nil {
		r.pos = &Position{Stream: s.Stream, Seq: s.Next - 1}
	}
	// Otherwise pos stays: if the stream is another one, the gap that says so is still owed.
	r.settled = true
	r.Logger.Info("connected", "root", s.Root, "next", s.Next, "head", s.Head)
	if err := r.h.Connected(s); err != nil {
		return errHandler{err}
	}
	r.Barriers.connected(c, s.Next-1)
	return nil
}

// covered checks a range, has it dealt with and acknowledges it.
func (r *runner) covered(c *protocol.Conn, subscribed bool, first, last uint64, handle func() error) error {
	if !subscribed || first != r.next || last+1 < first {
		return fmt.Errorf("range %d to %d is not next: %w", first, last, protocol.ErrSequence)
	}
	if err := handle(); err != nil {
		return errHandler{err}
	}
	r.next = last + 1
	r.pos = &Position{Stream: r.stream, Seq: last}
	r.Barriers.covered(last)
	return c.Write(&protocol.Ack{Seq: last})
}
