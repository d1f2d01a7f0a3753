package protocol

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

const (
	nonceSize = 32
	proofSize = sha256.Size
	// StreamSize is the length of a stream's name in bytes.
	StreamSize = 16
	// MinToken is the least length of a token in bytes: a proof that is overheard can be
	// tried against guesses.
	MinToken = 16
)

// defaultHandshake bounds a handshake.
const defaultHandshake = 10 * time.Second

// Options for Client and Server. The zero value works.
type Options struct {
	// Caps are the capabilities to offer.
	Caps []string
	// Agent names this program and its version, for the peer's log.
	Agent string
	// Token, if set, must be known to both sides: each proves it to the other
	// without sending it.
	Token []byte
	// HandshakeTimeout bounds the handshake; 0 is ten seconds.
	HandshakeTimeout time.Duration
	// IdleTimeout ends a connection from which nothing came for that long; 0 is a minute. Pings
	// are sent by the server in a third of it.
	IdleTimeout time.Duration
	// WriteTimeout ends a connection that takes nothing for that long; 0 is a minute.
	WriteTimeout time.Duration
}

func (o Options) withDefaults() Options {
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = defaultHandshake
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = time.Minute
	}
	if o.WriteTimeout <= 0 {
		o.WriteTimeout = time.Minute
	}
	return o
}

// Client performs the subscriber's side of the handshake on nc, which it owns from
// then on, whatever the outcome.
func Client(ctx context.Context, nc net.Conn, o Options) (*Conn, error) {
	return handshake(ctx, nc, o, MaxFrame, clientHandshake)
}

// Server performs the server's side of the handshake on nc, which it owns from then on,
// whatever the outcome.
func Server(ctx context.Context, nc net.Conn, o Options) (*Conn, error) {
	return handshake(ctx, nc, o, MaxSubscriberFrame, serverHandshake)
}

func handshake(ctx context.Context, nc net.Conn, o Options, max int, do func(*Conn, Options) error) (*Conn, error) {
	o = o.withDefaults()
	c := newConn(nc, o)
	ctx, cancel := context.WithTimeout(ctx, o.HandshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	err := do(c, o)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("handshake: %w", err)
	}
	c.established(max)
	return c, nil
}

func clientHandshake(c *Conn, o Options) error {
	mine := &Hello{Version: Version, MinVersion: MinVersion, Caps: o.Caps, Agent: o.Agent, Nonce: nonce()}
	writeErr := c.enc.Encode(mine)
	// Even if that failed: a server that lets nobody in says why before it closes.
	theirs, err := expect[*Hello](c)
	var said *Error
	if writeErr != nil && !errors.As(err, &said) {
		return writeErr
	}
	if err != nil {
		return err
	}
	c.peer = theirs
	auth, err := answerHello(mine, theirs, o)
	switch {
	case errors.Is(err, ErrAuth) && len(o.Token) == 0:
		return c.decline("the client has no token", err)
	case errors.Is(err, ErrAuth):
		return c.decline("the token is not the client's", err)
	case err != nil || auth == nil:
		return err
	}
	return c.enc.Encode(auth)
}

// answerHello checks a server's Hello and returns what it wants as an answer, nil if it wants none.
func answerHello(mine, theirs *Hello, o Options) (*Auth, error) {
	if theirs.Version < MinVersion || theirs.Version > Version {
		return nil, fmt.Errorf("server chose version %d: %w", theirs.Version, ErrVersion)
	}
	if len(theirs.Nonce) != nonceSize {
		return nil, fmt.Errorf("hello without a nonce: %w", ErrMalformed)
	}
	if len(o.Token) > 0 {
		// A server that cannot prove it is not the one we look for.
		want := proof(o.Token, "server", mine.Nonce, theirs.Nonce)
		if !theirs.Auth || !hmac.Equal(theirs.Proof, want) {
			return nil, fmt.Errorf("server does not know the token: %w", ErrAuth)
		}
	}
	if !theirs.Auth {
		return nil, nil
	}
	if len(o.Token) == 0 {
		return nil, fmt.Errorf("server wants a token: %w", ErrAuth)
	}
	return &Auth{Proof: proof(o.Token, "client", mine.Nonce, theirs.Nonce)}, nil
}

// decline tells a server, if it listens, why its client goes, and returns err.
func (c *Conn) decline(text string, err error) error {
	_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
	_ = c.enc.Encode(&Error{Code: CodeAuth, Text: text})
	return err
}

func serverHandshake(c *Conn, o Options) error {
	theirs, err := expect[*Hello](c)
	if err != nil {
		return err
	}
	if len(theirs.Nonce) != nonceSize {
		return fmt.Errorf("hello without a nonce: %w", ErrMalformed)
	}
	version := min(theirs.Version, Version)
	if version < MinVersion || version < theirs.MinVersion {
		text := fmt.Sprintf("server speaks %d to %d, client %d to %d", MinVersion, Version, theirs.MinVersion, theirs.Version)
		return c.refuse(&Error{Code: CodeVersion, Text: text})
	}
	c.peer = theirs
	mine := &Hello{Version: version, MinVersion: MinVersion, Agent: o.Agent, Nonce: nonce(), Auth: len(o.Token) > 0}
	for _, name := range theirs.Caps {
		if slices.Contains(o.Caps, name) {
			mine.Caps = append(mine.Caps, name)
		}
	}
	if mine.Auth {
		mine.Proof = proof(o.Token, "server", theirs.Nonce, mine.Nonce)
	}
	if err := c.enc.Encode(mine); err != nil {
		return err
	}
	if !mine.Auth {
		return nil
	}
	auth, err := expect[*Auth](c)
	if err != nil {
		return err
	}
	if !hmac.Equal(auth.Proof, proof(o.Token, "client", theirs.Nonce, mine.Nonce)) {
		return c.refuse(&Error{Code: CodeAuth, Text: "wrong token"})
	}
	return nil
}

// expect reads the next message, which must be a T or an Error.
func expect[T Message](c *Conn) (T, error) {
	var none T
	m, err := c.dec.Decode()
	if err != nil {
		if c.peer == nil && isNonsense(err) {
			err = fmt.Errorf("%w: %w", ErrNotHerald, err)
		}
		return none, err
	}
	switch m := m.(type) {
	case T:
		return m, nil
	case *Error:
		return none, m
	}
	return none, fmt.Errorf("message of type %d out of turn: %w", m.Type(), ErrProtocol)
}

func nonce() []byte {
	b := make([]byte, nonceSize)
	_, _ = rand.Read(b) // never fails
	return b
}

// proof ties the token to this connection's nonces. The two sides' proofs differ, so
// that neither can be sent back.
func proof(token []byte, side string, client, server []byte) []byte {
	mac := hmac.New(sha256.New, token)
	mac.Write([]byte("heraldfs " + side + "\x00"))
	mac.Write(client)
	mac.Write(server)
	return mac.Sum(nil)
}
