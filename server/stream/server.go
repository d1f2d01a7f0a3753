package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
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
	// Conn is for the handshake: token, timeouts.
	Conn protocol.Options
	// MaxSubscribers bounds the connections; 0 is 1,024.
	MaxSubscribers int
	// Logger is told of connections; nil is silent.
	Logger *slog.Logger
}

// Server accepts subscribers.
type Server struct {
	opts ServerOptions
	log  *slog.Logger
	ping time.Duration
	slot chan struct{}
}

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
	return &Server{opts: o, log: o.Logger, ping: o.Conn.IdleTimeout / 3, slot: make(chan struct{}, o.MaxSubscribers)}
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
			if err := s.serve(ctx, nc); err != nil && ctx.Err() == nil {
				s.log.Info("subscriber ended", "peer", nc.RemoteAddr(), "err", err)
			}
		})
	}
}

func (s *Server) serve(ctx context.Context, nc net.Conn) error {
	select {
	case s.slot <- struct{}{}:
		defer func() { <-s.slot }()
	default:
		return refuse(nc, &protocol.Error{Code: protocol.CodeBusy}, protocol.ErrBusy)
	}
	if s.opts.Check != nil {
		if err := s.opts.Check(nc); err != nil {
			return refuse(nc, &protocol.Error{Code: protocol.CodeAuth, Text: "this peer may not subscribe"}, err)
		}
	}
	c, err := protocol.Server(ctx, nc, s.opts.Conn)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	sub, err := readSubscribe(c)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.Refuse(goodbye(err))
		return err
	}
	st := s.opts.Streams[sub.Root]
	if st == nil || s.opts.Allow != nil && !s.opts.Allow(nc, sub.Root) {
		err := fmt.Errorf("root %q: %w", sub.Root, protocol.ErrNoRoot)
		c.Refuse(&protocol.Error{Code: protocol.CodeNoRoot, Text: err.Error()})
		return err
	}
	err = st.attach(ctx, c, sub, s.ping)
	c.Refuse(goodbye(err))
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// refuse tells a peer that has not been listened to why not, with the little time that it is worth.
func refuse(nc net.Conn, e *protocol.Error, err error) error {
	_ = nc.SetDeadline(time.Now().Add(time.Second))
	_ = protocol.NewEncoder(nc).Encode(e)
	_ = nc.Close()
	return err
}

func readSubscribe(c *protocol.Conn) (*protocol.Subscribe, error) {
	for {
		m, err := c.Read()
		if err != nil {
			return nil, err
		}
		switch m := m.(type) {
		case *protocol.Subscribe:
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
