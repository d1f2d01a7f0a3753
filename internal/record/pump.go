package record

import (
	"errors"
	"io"
	"sync"
)

// maxPumped is how much a Pump holds before Write blocks.
const maxPumped = 32 << 20

// Pump writes in the background, so that a reader who pauses does not keep us from reading
// the kernel's queue. When it holds 32 MiB, Write blocks until something was written.
type Pump struct {
	w    io.Writer
	done chan struct{}

	mu     sync.Mutex
	cond   *sync.Cond
	buf    []byte
	closed bool
	err    error
}

// NewPump starts writing to w.
func NewPump(w io.Writer) *Pump {
	p := &Pump{w: w, done: make(chan struct{})}
	p.cond = sync.NewCond(&p.mu)
	go p.run()
	return p
}

// Write takes a copy of b. It fails if an earlier write did.
func (p *Pump) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.buf) > maxPumped && p.err == nil && !p.closed {
		p.cond.Wait()
	}
	if p.err != nil {
		return 0, p.err
	}
	if p.closed {
		return 0, errors.New("write to a closed pump")
	}
	p.buf = append(p.buf, b...)
	p.cond.Broadcast()
	return len(b), nil
}

func (p *Pump) run() {
	defer close(p.done)
	var out []byte
	for {
		p.mu.Lock()
		for len(p.buf) == 0 && !p.closed {
			p.cond.Wait()
		}
		if len(p.buf) == 0 || p.err != nil {
			p.mu.Unlock()
			return
		}
		out, p.buf = p.buf, out[:0]
		p.cond.Broadcast()
		p.mu.Unlock()
		if _, err := p.w.Write(out); err != nil {
			p.mu.Lock()
			p.err = err
			p.cond.Broadcast()
			p.mu.Unlock()
			return
		}
	}
}

// Failed is closed when the Pump has stopped: after Close, or when a write failed.
func (p *Pump) Failed() <-chan struct{} { return p.done }

// Close writes what is held and returns the first error of any write. Idempotent. It does not close w.
func (p *Pump) Close() error {
	p.mu.Lock()
	p.closed = true
	p.cond.Broadcast()
	p.mu.Unlock()
	<-p.done
	return p.err
}
