package stream

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/client"
)

// TestBarrier: whoever waits has everything that the host knew of by then, also what was filtered, and
// over a connection that breaks meanwhile.
func TestBarrier(t *testing.T) {
	var mu sync.Mutex
	var before []Record // what Barrier finds still unpublished
	var st *Stream
	b := newBed(t, Options{Barrier: func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		st.Publish(before)
		before = nil
		return nil
	}}, ServerOptions{Conn: protocol.Options{Caps: Caps()}})
	mu.Lock()
	st = b.st
	mu.Unlock()
	for name, sub := range map[string]protocol.Subscribe{"all": {}, "none": {Include: []string{"nothing"}}} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t, 3, 5, 2000, b.dial)
			var barriers client.Barriers
			c := newCollector()
			start(t, client.Options{Dial: p.connect, Conn: protocol.Options{Caps: Caps()}, Subscribe: sub, Barriers: &barriers}, c)
			for i := range 40 {
				mu.Lock()
				before = append(before, modify("d", "a"), modify("d", "b"))
				mu.Unlock()
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				if err := barriers.Wait(ctx); err != nil {
					t.Fatal(err)
				}
				cancel()
				head := st.Head()
				if err := c.did(func() {
					if c.last < head {
						t.Errorf("barrier %d came with %d of %d", i, c.last, head)
					}
				}); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	old := newBed(t, Options{}, ServerOptions{})
	var barriers client.Barriers
	start(t, client.Options{Dial: old.dial, Conn: protocol.Options{Caps: Caps()}, Barriers: &barriers}, newCollector())
	if err := barriers.Wait(t.Context()); !errors.Is(err, notify.ErrNotSupported) {
		t.Errorf("a server without a barrier: %v", err)
	}
}
