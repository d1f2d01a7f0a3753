package protocol

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// readBuffer is small: a server has one for each subscriber, who says little.
const readBuffer = 4 << 10

// Conn is a connection after the handshake.
type Conn struct {
	nc   net.Conn
	opts Options
	peer *Hello
	dec  *Decoder

	wmu sync.Mutex
	enc *Encoder
}

func newConn(nc net.Conn, o Options) *Conn {
	return &Conn{nc: nc, opts: o, dec: NewDecoder(nc, MaxHelloFrame), enc: NewEncoder(nc)}
}

// established lifts the handshake's limits. The decoder of the handshake reads no byte too
// many, so that a buffered one can take over.
func (c *Conn) established(max int) {
	_ = c.nc.SetDeadline(time.Time{})
	c.dec = NewDecoder(bufio.NewReaderSize(&idleReader{c.nc, c.opts.IdleTimeout}, readBuffer), max)
}

// idleReader moves the deadline on with each read.
type idleReader struct {
	nc   net.Conn
	idle time.Duration
}

func (r *idleReader) Read(p []byte) (int, error) {
	if err := r.nc.SetReadDeadline(time.Now().Add(r.idle)); err != nil {
		return 0, err
	}
	return r.nc.Read(p)
}

// Peer is what the other side said of itself.
func (c *Conn) Peer() Hello { return *c.peer }

// Has reports whether the server's Hello, on the client's side, names the
// capability.
func (c *Conn) Has(name string) bool {
	for _, has := range c.peer.Caps {
		if has == name {
			return true
		}
	}
	return false
}

// Shares reports, on either side, whether both have the capability.
func (c *Conn) Shares(name string) bool {
	return c.Has(name) && slices.Contains(c.opts.Caps, name)
}

// NetConn is the connection below. Reading or writing it breaks the Conn.
func (c *Conn) NetConn() net.Conn { return c.nc }

// Read returns the next message. A Ping is answered before it is returned, unless it asks for
// a barrier that both sides know of; an Error is returned as the error that it is.
func (c *Conn) Read() (Message, error) {
	m, err := c.dec.Decode()
	if err != nil {
		return nil, err
	}
	switch m := m.(type) {
	case *Error:
		return nil, m
	case *Ping:
		if m.Sync && c.Shares(CapBarrier) {
			break // the reader's to answer
		}
		if err := c.Write(&Pong{ID: m.ID}); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Write sends one message. It blocks while the peer takes nothing, at most for
// Options.WriteTimeout.
func (c *Conn) Write(m Message) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := c.nc.SetWriteDeadline(time.Now().Add(c.opts.WriteTimeout)); err != nil {
		return err
	}
	return c.enc.Encode(m)
}

// Refuse tells the peer why, as far as it listens, and closes.
func (c *Conn) Refuse(e *Error) {
	if c.wmu.TryLock() {
		_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
		_ = c.enc.Encode(e)
		c.wmu.Unlock()
	}
	_ = c.nc.Close()
}

// refuse is Refuse for the handshake, which closes by itself.
func (c *Conn) refuse(e *Error) error {
	_ = c.enc.Encode(e)
	return fmt.Errorf("refused: %s: %w", e.Text, e.Code.sentinel())
}

// Close closes the connection and unblocks Read and Write. Idempotent.
func (c *Conn) Close() error {
	err := c.nc.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// isNonsense reports whether the bytes themselves were wrong.
func isNonsense(err error) bool {
	return errors.Is(err, ErrMalformed) || errors.Is(err, ErrFrameTooBig)
}
