package stream

import (
	"context"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// proxy stands between a subscriber and a server. It splits the stream into pieces of any
// size, delays some of them, and cuts each connection somewhere, for as long as it has cuts left.
type proxy struct {
	path   string
	dial   func(context.Context) (net.Conn, error)
	mu     sync.Mutex
	rng    *rand.Rand
	cuts   int
	maxLen int // bytes until a cut, at most
	conns  int
}

func newProxy(t testing.TB, seed uint64, cuts, maxLen int, dial func(context.Context) (net.Conn, error)) *proxy {
	t.Helper()
	p := &proxy{path: filepath.Join(t.TempDir(), "p"), dial: dial, cuts: cuts, maxLen: maxLen,
		rng: rand.New(rand.NewPCG(seed, 1))}
	ln, err := net.Listen("unix", p.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(ctx, nc) })
		}
	})
	t.Cleanup(func() {
		cancel()
		ln.Close()
		wg.Wait()
	})
	return p
}

func (p *proxy) connect(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", p.path)
}

// intn is rand.IntN for many goroutines.
func (p *proxy) intn(n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rng.IntN(n)
}

func (p *proxy) serve(ctx context.Context, a net.Conn) {
	b, err := p.dial(ctx)
	if err != nil {
		a.Close()
		return
	}
	p.mu.Lock()
	p.conns++
	left := -1
	if p.cuts > 0 {
		p.cuts--
		left = p.rng.IntN(p.maxLen)
	}
	p.mu.Unlock()
	closeBoth := sync.OnceFunc(func() { a.Close(); b.Close() })
	stop := context.AfterFunc(ctx, closeBoth)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { p.pump(b, a, -1); closeBoth() })
	wg.Go(func() { p.pump(a, b, left); closeBoth() })
	wg.Wait()
}

// pump copies until an error, or until left bytes are through; -1 is no limit.
func (p *proxy) pump(dst, src net.Conn, left int) {
	buf := make([]byte, 32<<10)
	for left != 0 {
		n, err := src.Read(buf[:1+p.intn(len(buf)-1)])
		if err != nil {
			return
		}
		if left > 0 {
			n = min(n, left)
			left -= n
		}
		for piece := buf[:n]; len(piece) > 0; {
			k := 1 + p.intn(len(piece))
			if p.intn(50) == 0 {
				// Latency of the link; nothing waits for it to be over.
				<-time.After(time.Duration(p.intn(1000)) * time.Microsecond)
			}
			if _, err := dst.Write(piece[:k]); err != nil {
				return
			}
			piece = piece[k:]
		}
	}
}
