package loop

import (
	"context"
	"sync"

	"github.com/heraldfs/heraldfs/notify"
)

// barriers are callers that wait for the queue's end. One that came before a turn began is
// let go when a turn has emitted all up to the end.
type barriers struct {
	mu              sync.Mutex
	coming, waiting []chan error
	ended           bool
}

func (b *barriers) start() {
	b.mu.Lock()
	b.ended = false
	b.mu.Unlock()
}

func (b *barriers) begin() {
	b.mu.Lock()
	b.waiting = append(b.waiting, b.coming...)
	b.coming = b.coming[:0]
	b.mu.Unlock()
}

// reached reports whether anybody has waited.
func (b *barriers) reached() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.waiting {
		c <- nil
	}
	any := len(b.waiting) > 0
	b.waiting = b.waiting[:0]
	return any
}

func (b *barriers) end() {
	b.mu.Lock()
	b.ended = true
	for _, c := range append(b.waiting, b.coming...) {
		c <- notify.ErrClosed
	}
	b.waiting, b.coming = nil, nil
	b.mu.Unlock()
}

// Barrier is notify.Barrier's. Before Run it waits for it.
func (l *Loop) Barrier(ctx context.Context) error {
	c := make(chan error, 1)
	l.barriers.mu.Lock()
	if l.barriers.ended {
		l.barriers.mu.Unlock()
		return notify.ErrClosed
	}
	l.barriers.coming = append(l.barriers.coming, c)
	l.barriers.mu.Unlock()
	l.Wake()
	select {
	case err := <-c:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
