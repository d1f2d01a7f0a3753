package protocol

import (
	"bytes"
	"context"
	"crypto/hmac"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

// CapAgent in a Hello says that its sender is, or serves, an agent.
const CapAgent = "agent"

// Limits of an agent's channel.
const (
	// MaxCalls bounds the calls of one message.
	MaxCalls = 1024
	// MaxStale bounds what an agent passes over before the answer to its Hello, in bytes.
	MaxStale = 16 << 20
	// MaxErrno is the largest error number that a kernel gives.
	MaxErrno = 4095
)

// Attach says that an agent is ready, and which thread will perform the calls.
type Attach struct {
	Tid uint32 // "tid": in the pid namespace that the agent is in
}

// Calls asks an agent to perform calls one after the other, up to the first that fails.
type Calls struct {
	ID    uint64 // "id"
	Calls []notify.Call
}

// Results answers a Calls.
type Results struct {
	ID    uint64 // "id": that of the calls
	Done  uint32 // "done": how many were performed
	Errno uint32 // "errno": why the next one was not; 0 if all were
}

// Hail is what a host says to a channel of which it does not know who is at its other end: an
// agent opens anew.
type Hail struct{}

// The Type methods tie the messages to their numbers.
func (*Attach) Type() Type  { return TypeAttach }
func (*Calls) Type() Type   { return TypeCalls }
func (*Results) Type() Type { return TypeResults }
func (*Hail) Type() Type    { return TypeHail }

// Channel is a byte stream between an agent and its host: a net.Conn, or a virtio-serial port.
type Channel interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// AgentLink is one side of an agent's channel. One goroutine may read and one write.
//
// A virtio-serial port is no connection: the agent or the host at its end can be another one than
// before, and neither is told, and what was sent to the one before can still arrive.
// So an agent passes over everything until its own nonce comes back, and a host
// takes a Hello at any time for a new agent.
type AgentLink struct {
	ch   Channel
	opts Options
	dec  *Decoder
	enc  *Encoder
	peer *Hello
	// host is set on the host's side.
	host bool
}

// OpenAgent is the agent's side of the handshake. The channel stays the caller's.
func OpenAgent(ctx context.Context, ch Channel, o Options) (*AgentLink, error) {
	l := &AgentLink{ch: ch, opts: o.withDefaults(), enc: NewEncoder(ch), dec: NewDecoder(ch, MaxFrame)}
	err := l.bounded(ctx, func() error {
		mine := &Hello{Version: Version, MinVersion: MinVersion, Caps: []string{CapAgent}, Agent: o.Agent, Nonce: nonce()}
		if err := l.enc.Encode(mine); err != nil {
			return err
		}
		if err := passOver(ch, mine.Nonce); err != nil {
			return err
		}
		theirs, err := expectIn[*Hello](l.dec)
		if err != nil {
			return err
		}
		l.peer = theirs
		if !slices.Contains(theirs.Caps, CapAgent) {
			return fmt.Errorf("peer wants no agent: %w", ErrProtocol)
		}
		auth, err := answerHello(mine, theirs, o)
		if err != nil || auth == nil {
			return err
		}
		return l.enc.Encode(auth)
	})
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	return l, nil
}

// passOver reads up to and with want. It reads no byte beyond it.
func passOver(r io.Reader, want []byte) error {
	have := make([]byte, 0, len(want))
	buf := make([]byte, len(want))
	for n := 0; n < MaxStale; {
		// As many bytes as are missing at least: no read can go past the end.
		k, err := r.Read(buf[:len(want)-len(have)])
		if err != nil {
			return err
		}
		n += k
		have = append(have, buf[:k]...)
		for len(have) > 0 && !bytes.HasPrefix(want, have) {
			have = append(have[:0], have[1:]...)
		}
		if len(have) == len(want) {
			return nil
		}
	}
	return fmt.Errorf("%d bytes without an answer to our hello: %w", MaxStale, ErrMalformed)
}

// NewAgentHost is the host's side of a channel. Accept is to be called with each Hello that is read.
func NewAgentHost(ch Channel, o Options) *AgentLink {
	return &AgentLink{ch: ch, opts: o.withDefaults(), enc: NewEncoder(ch), dec: NewDecoder(ch, MaxHelloFrame), host: true}
}

// Accept answers an agent's Hello. Nothing else may be written meanwhile.
func (l *AgentLink) Accept(ctx context.Context, theirs *Hello) error {
	return l.bounded(ctx, func() error {
		version := min(theirs.Version, Version)
		switch {
		case len(theirs.Nonce) != nonceSize:
			return fmt.Errorf("hello without a nonce: %w", ErrMalformed)
		case version < MinVersion || version < theirs.MinVersion:
			return fmt.Errorf("agent speaks %d to %d: %w", theirs.MinVersion, theirs.Version, ErrVersion)
		case !slices.Contains(theirs.Caps, CapAgent):
			return fmt.Errorf("peer is no agent: %w", ErrProtocol)
		}
		l.peer = theirs
		mine := &Hello{Version: version, MinVersion: MinVersion, Caps: []string{CapAgent}, Agent: l.opts.Agent, Nonce: nonce(), Auth: len(l.opts.Token) > 0}
		if mine.Auth {
			mine.Proof = proof(l.opts.Token, "server", theirs.Nonce, mine.Nonce)
		}
		if _, err := l.ch.Write(theirs.Nonce); err != nil {
			return err
		}
		if err := l.enc.Encode(mine); err != nil {
			return err
		}
		if !mine.Auth {
			return nil
		}
		auth, err := expectIn[*Auth](l.dec)
		if err != nil {
			return err
		}
		if !hmac.Equal(auth.Proof, proof(l.opts.Token, "client", theirs.Nonce, mine.Nonce)) {
			return fmt.Errorf("agent: wrong token: %w", ErrAuth)
		}
		return nil
	})
}

// bounded calls do with the handshake's time limit.
func (l *AgentLink) bounded(ctx context.Context, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, l.opts.HandshakeTimeout)
	defer cancel()
	// That of an earlier message may have passed.
	if err := l.ch.SetDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.ch.SetDeadline(time.Unix(1, 0)) })
	err := do()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = l.ch.SetDeadline(time.Time{})
	}
	return err
}

// Peer is what the other side said of itself.
func (l *AgentLink) Peer() Hello { return *l.peer }

// Read returns the next message, and an error if nothing comes for Options.IdleTimeout; on the
// host's side only once there is an agent. An Error is returned as the error that it is.
func (l *AgentLink) Read() (Message, error) {
	var until time.Time
	if !l.host || l.peer != nil {
		until = time.Now().Add(l.opts.IdleTimeout)
	}
	if err := l.ch.SetReadDeadline(until); err != nil {
		return nil, err
	}
	m, err := l.dec.Decode()
	if err != nil {
		return nil, err
	}
	if e, ok := m.(*Error); ok {
		return nil, e
	}
	return m, nil
}

// Write sends one message. It blocks for Options.WriteTimeout at most.
func (l *AgentLink) Write(m Message) error {
	if err := l.ch.SetWriteDeadline(time.Now().Add(l.opts.WriteTimeout)); err != nil {
		return err
	}
	return l.enc.Encode(m)
}

func (w *writer) calls(m *Calls) {
	w.mapLen(2)
	w.keyUint("id", m.ID)
	w.key("calls")
	w.arrayLen(len(m.Calls))
	for i := range m.Calls {
		w.call(&m.Calls[i])
	}
}

func (w *writer) call(c *notify.Call) {
	w.mapLen(1 + count(c.Dir != 0, c.Name != "", c.NewDir != 0, c.NewName != "", c.Slot != 0, c.Mode != 0, c.Rdev != 0))
	w.keyUint("o", uint64(c.Op))
	if c.Dir != 0 {
		w.keyUint("d", uint64(c.Dir))
	}
	if c.Name != "" {
		w.keyBin("n", c.Name)
	}
	if c.NewDir != 0 {
		w.keyUint("td", uint64(c.NewDir))
	}
	if c.NewName != "" {
		w.keyBin("tn", c.NewName)
	}
	if c.Slot != 0 {
		w.keyUint("s", uint64(c.Slot))
	}
	if c.Mode != 0 {
		w.keyUint("m", uint64(c.Mode))
	}
	if c.Rdev != 0 {
		w.keyUint("r", uint64(c.Rdev))
	}
}
