package client

import (
	"context"
	"fmt"
	"sync"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
)

// Barriers lets anybody wait until a subscription has caught up with the host. The zero value is
// ready; give it to one Run.
//
// One barrier is on its way at a time. Whoever comes meanwhile waits for the
// next one, since the host may have changed after the first was asked for. What a broken connection
// leaves unanswered is asked again on the next one.
type Barriers struct {
	mu   sync.Mutex
	conn *protocol.Conn
	able bool
	last uint64 // id of the last ping
	// asked is on its way; answered waits for the Handler to get to seq; the others wait for their
	// turn.
	asked, next []chan error
	answered    []answered
	dealt       uint64
}

type answered struct {
	seq     uint64
	waiters []chan error
}

// Wait returns when everything that was done on the host before the call has been dealt with by the
// Handler. Without a connection it waits for one. notify.ErrNotSupported: the server
// has no barrier.
func (b *Barriers) Wait(ctx context.Context) error {
	done := make(chan error, 1)
	b.mu.Lock()
	b.next = append(b.next, done)
	b.askLocked()
	b.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// askLocked sends a ping if somebody needs one and none is on its way.
func (b *Barriers) askLocked() {
	if len(b.next) == 0 || len(b.asked) > 0 || b.conn == nil {
		return
	}
	if !b.able {
		tell(b.next, fmt.Errorf("the server has no barrier: %w", notify.ErrNotSupported))
		b.next = nil
		return
	}
	b.asked, b.next = b.next, nil
	b.last++
	id, c := b.last, b.conn
	// Not under the lock: a peer that takes nothing would hold it. A failure ends the connection.
	go func() { _ = c.Write(&protocol.Ping{ID: id, Sync: true}) }()
}

func tell(waiters []chan error, err error) {
	for _, w := range waiters {
		w <- err // has room
	}
}

func (b *Barriers) connected(c *protocol.Conn, dealt uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn, b.able, b.dealt = c, c.Shares(protocol.CapBarrier), dealt
	b.askLocked()
}

// disconnected puts all back that was not finished: the next stream may be numbered anew.
func (b *Barriers) disconnected() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn = nil
	b.next = append(b.next, b.asked...)
	for _, a := range b.answered {
		b.next = append(b.next, a.waiters...)
	}
	b.asked, b.answered = nil, nil
}

// pong is called by the reader.
func (b *Barriers) pong(m *protocol.Pong) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m.ID != b.last || len(b.asked) == 0 {
		return
	}
	if b.dealt >= m.Seq {
		tell(b.asked, nil)
	} else {
		b.answered = append(b.answered, answered{m.Seq, b.asked})
	}
	b.asked = nil
	b.askLocked()
}

// covered says that the Handler has dealt with everything up to seq.
func (b *Barriers) covered(seq uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dealt = seq
	for len(b.answered) > 0 && b.answered[0].seq <= seq {
		tell(b.answered[0].waiters, nil)
		b.answered = b.answered[1:]
	}
}

// end is for whoever still waits when Run returns.
func (b *Barriers) end() {
	b.disconnected()
	b.mu.Lock()
	defer b.mu.Unlock()
	tell(b.next, notify.ErrClosed)
	b.next = nil
}
