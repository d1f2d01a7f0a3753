package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/heraldfs/heraldfs/protocol"
)

// ServerOptions for NewServer. Streams is required.
type ServerOptions struct {
	// Streams are the roots by name; "" is the one for subscribers who name none.
	Streams map[string]*Stream
	// Check, if set, may refuse a connection before the handshake, for who its peer is.
	Check func(net.Conn) error
	// Allow, if set, says whether the peer may see the root. One that it may not see does not
	// exist for it.
	Allow func(c net.Conn, root string) bool
	// Status, if set, makes the answer to protocol.Inquire, for a peer that may have it; for another
	// one it returns protocol.ErrForbidden.
	Status func(c net.Conn) ([]byte, error)
	// Origin, if set, is asked about the name that a subscriber goes by (protocol.Subscribe). Its error, which should wrap
	// protocol.ErrNoOrigin, refuses the subscriber; its text is told to it. Without Origin no name is known.
	Origin func(name string) (note string, err error)
	// Conn is for the handshake: token, timeouts.
	Conn protocol.Options
	// MaxSubscribers bounds the subscriptions; 0 is 1,024. A few more may be connected.
	MaxSubscribers int
	// Logger is told of connections; nil is silent.
	Logger *slog.Logger
}

// Server accepts subscribers.
type Server struct {
	opts ServerOptions
	log  *slog.Logger
	ping time.Duration
	// conns bounds the connections, slot those that subscribe.
	conns   chan struct{}
	slot    chan struct{}
	refused refusals
}

// spareConns are the connections that may be before a subscription, or come to inquire, when all
// subscriptions are taken.
const spareConns = 16

// NewServer returns a Server for any number of listeners.
func NewServer(o ServerOptions) *Server {
	if o.MaxSubscribers <= 0 {
		o.MaxSubscribers = 1024
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Conn.IdleTimeout <= 0 {
		o.Conn.IdleTimeout = time.Minute
	}
	if o.Conn.HandshakeTimeout <= 0 {
		o.Conn.HandshakeTimeout = 10 * time.Second
	}
	if o.Status != nil {
		o.Conn.Caps = append(slices.Clone(o.Conn.Caps), protocol.CapStatus)
	}
	return &Server{
		opts: o, log: o.Logger, ping: o.Conn.IdleTimeout / 3,
		conns: make(chan struct{}, o.MaxSubscribers+spareConns), slot: make(chan struct{}, o.MaxSubscribers),
	}
}

// Serve accepts subscribers on ln, which it closes, until ctx ends; it then tells
// them that it shuts down, waits for their sessions and returns nil.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		<-ctx.Done()
		_ = ln.Close()
	})
	pause := time.Duration(0)
	for {
		nc, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = nc.Close()
			}
			return nil
		}
		if err != nil {
			// Out of descriptors, or a peer that was gone at once: neither is the end.
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept: %w", err)
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.Warn("accept", "err", err, "retry", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		pause = 0
		wg.Go(func() {
			subscribed, err := s.serve(ctx, nc)
			switch {
			case err == nil || ctx.Err() != nil:
			case subscribed:
				s.log.Info("subscriber ended", "peer", nc.RemoteAddr(), "err", err)
			default:
				s.log.Info("connection refused", "peer", nc.RemoteAddr(), "reason", s.refused.count(err), "err", err)
			}
		})
	}
}

// take returns what gives a slot back, nil if none is free.
func take(slots chan struct{}) func() {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }
	default:
		return nil
	}
}

// serve serves one connection, and says whether it got as far as a subscription.
func (s *Server) serve(ctx context.Context, nc net.Conn) (subscribed bool, err error) {
	leave := take(s.conns)
	if leave == nil {
		return false, refuse(nc, &protocol.Error{Code: protocol.CodeBusy}, protocol.ErrBusy)
	}
	defer leave()
	if s.opts.Check != nil {
		if err := s.opts.Check(nc); err != nil {
			return false, refuse(nc, &protocol.Error{Code: protocol.CodeAuth, Text: "this peer may not subscribe"}, errors.Join(errPeer, err))
		}
	}
	if err := s.secure(ctx, nc); err != nil {
		_ = nc.Close()
		return false, err
	}
	c, err := protocol.Server(ctx, nc, s.opts.Conn)
	if err != nil {
		return false, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	wish, err := readWish(c)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.Refuse(goodbye(err))
		return false, err
	}
	sub, ok := wish.(*protocol.Subscribe)
	if !ok {
		return false, s.tell(c)
	}
	st := s.opts.Streams[sub.Root]
	if st == nil || s.opts.Allow != nil && !s.opts.Allow(nc, sub.Root) {
		err := fmt.Errorf("root %q: %w", sub.Root, protocol.ErrNoRoot)
		c.Refuse(&protocol.Error{Code: protocol.CodeNoRoot, Text: err.Error()})
		return false, err
	}
	note, err := s.origin(sub.Origin)
	if err != nil {
		c.Refuse(&protocol.Error{Code: protocol.CodeNoOrigin, Text: err.Error()})
		return false, err
	}
	if note != "" {
		s.log.Warn("a subscriber goes by a name that fits nobody", "peer", nc.RemoteAddr(), "origin", sub.Origin, "note", note)
	}
	free := take(s.slot)
	if free == nil {
		c.Refuse(&protocol.Error{Code: protocol.CodeBusy})
		return false, protocol.ErrBusy
	}
	defer free()
	err = st.attach(ctx, c, sub, s.ping, note)
	c.Refuse(goodbye(err))
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return true, err
}

// origin judges the name that a subscriber goes by.
func (s *Server) origin(name string) (note string, err error) {
	switch {
	case name == "":
		return "", nil
	case s.opts.Origin == nil:
		return "", fmt.Errorf("origin %q: %w: the server names no process", name, protocol.ErrNoOrigin)
	}
	return s.opts.Origin(name)
}

// secure completes a TLS handshake, if there is one to be made.
func (s *Server) secure(ctx context.Context, nc net.Conn) error {
	tc, ok := nc.(interface {
		HandshakeContext(context.Context) error
	})
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.Conn.HandshakeTimeout)
	defer cancel()
	if err := tc.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("%w: %w", errCertificate, err)
	}
	return nil
}

// tell answers an Inquire.
func (s *Server) tell(c *protocol.Conn) error {
	doc, err := []byte(nil), protocol.ErrForbidden
	if s.opts.Status != nil {
		doc, err = s.opts.Status(c.NetConn())
	}
	if err != nil {
		c.Refuse(&protocol.Error{Code: protocol.CodeForbidden, Text: "status: " + err.Error()})
		return err
	}
	return c.Write(&protocol.Status{JSON: doc})
}

// refuse tells a peer that has not been listened to why not, with the little time that it is worth.
func refuse(nc net.Conn, e *protocol.Error, err error) error {
	_ = nc.SetDeadline(time.Now().Add(time.Second))
	_ = protocol.NewEncoder(nc).Encode(e)
	_ = nc.Close()
	return err
}

// readWish returns the Subscribe or Inquire.
func readWish(c *protocol.Conn) (protocol.Message, error) {
	for {
		m, err := c.Read()
		if err != nil {
			return nil, err
		}
		switch m := m.(type) {
		case *protocol.Subscribe, *protocol.Inquire:
			return m, nil
		case *protocol.Ping, *protocol.Pong:
		default:
			return nil, fmt.Errorf("message of type %d instead of subscribe: %w", m.Type(), protocol.ErrProtocol)
		}
	}
}

// goodbye is what a peer is told about err.
func goodbye(err error) *protocol.Error {
	switch {
	case errors.Is(err, context.Canceled):
		return &protocol.Error{Code: protocol.CodeShutdown}
	case errors.Is(err, protocol.ErrMalformed), errors.Is(err, protocol.ErrFrameTooBig), errors.Is(err, protocol.ErrProtocol):
		return &protocol.Error{Code: protocol.CodeProtocol, Text: err.Error()}
	}
	return &protocol.Error{Code: protocol.CodeInternal}
}
