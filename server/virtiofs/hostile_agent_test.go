package virtiofs

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/server/agents"
)

// lies are wrong answers to a message of calls.
func lies(p *puppet) map[string]func(*protocol.Calls) {
	r := rand.New(rand.NewPCG(3, 4))
	return map[string]func(*protocol.Calls){
		"nothing was done": func(c *protocol.Calls) { p.link.Write(&protocol.Results{ID: c.ID, Done: uint32(len(c.Calls))}) },
		"errors": func(c *protocol.Calls) {
			p.link.Write(&protocol.Results{ID: c.ID, Done: uint32(r.IntN(len(c.Calls))), Errno: 1 + uint32(r.IntN(protocol.MaxErrno))})
		},
		"twice": func(c *protocol.Calls) {
			for range 2 {
				p.link.Write(&protocol.Results{ID: c.ID, Done: uint32(len(c.Calls))})
			}
		},
		"out of order": func(c *protocol.Calls) {
			for _, id := range []uint64{c.ID + 1, c.ID, c.ID - 1} {
				p.link.Write(&protocol.Results{ID: id, Done: uint32(len(c.Calls))})
			}
		},
		"never": func(*protocol.Calls) {},
		"flood of results": func(*protocol.Calls) {
			for i := range uint64(20000) {
				if p.link.Write(&protocol.Results{ID: i, Done: 1}) != nil {
					break
				}
			}
		},
		"flood of pongs": func(*protocol.Calls) {
			for i := range uint64(20000) {
				if p.link.Write(&protocol.Pong{ID: i}) != nil {
					break
				}
			}
		},
		"flood of attaches": func(*protocol.Calls) {
			for i := range uint32(2000) {
				if p.link.Write(&protocol.Attach{Tid: i + 1}) != nil {
					break
				}
			}
		},
		"bytes": func(*protocol.Calls) { p.nc.Write(make([]byte, 4<<20)) },
	}
}

// TestHostileAgent: an agent that lies, answers too often, never, or floods changes nothing on the host, keeps nobody else
// from being served, and is replaced by an honest one as if nothing had been. What such a guest may ask meanwhile is TestHostileThread.
func TestHostileAgent(t *testing.T) {
	dir := victims(t)
	p := newPuppet(t, dir, 2*time.Second, agents.ShareOptions{})
	p.find(1, "churn")
	other := guestOf(t, dir)
	p.honest()
	before := state(t, dir)
	check := func(t *testing.T) {
		t.Helper()
		if after := state(t, dir); after != before {
			t.Fatalf("the share was changed:\n%swas\n%s", after, before)
		}
		lookup(t, other, "v0")
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	heap, goroutines := m.HeapAlloc, runtime.NumGoroutine()
	lies := lies(p)
	for _, name := range slices.Sorted(maps.Keys(lies)) {
		t.Run(name, func(t *testing.T) {
			p.t = t
			p.honest()
			p.do("cd churn; echo 1 > f; chmod 600 f; ln f g; mv f h; mkdir d; mv h d/h; rm g d/h; rmdir d; ln -s x l; rm l")
			for range 20 {
				c, err := p.calls()
				if err != nil {
					break
				}
				if !changes(&c.Calls[len(c.Calls)-1]) {
					p.link.Write(&protocol.Results{ID: c.ID, Done: uint32(len(c.Calls))})
					continue
				}
				lies[name](c)
			}
			check(t)
		})
	}
	t.Run("honest again", func(t *testing.T) {
		p.t = t
		p.honest()
		check(t)
		p.nc.Close()
		runtime.GC()
		runtime.ReadMemStats(&m)
		if m.HeapAlloc > heap+16<<20 {
			t.Errorf("%d MiB more are in use", (m.HeapAlloc-heap)>>20)
		}
		if n := runtime.NumGoroutine(); n > goroutines+10 {
			t.Errorf("%d goroutines, there were %d", n, goroutines)
		}
	})
}

// TestGhosts: an agent in a guest that forgets nothing is left once that costs too much, and is welcome when it has forgotten.
func TestGhosts(t *testing.T) {
	dir := testenv.Tmpfs(t)
	const limit = 64
	if err := os.Mkdir(filepath.Join(dir, "churn"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := newPuppet(t, dir, 20*time.Second, agents.ShareOptions{GhostLimit: limit})
	churn := p.find(1, "churn")
	p.honest()
	p.do(fmt.Sprintf("for i in $(seq %d); do mkdir churn/$i; done", 4*limit))
	err := p.serve(nil, func(*notify.Call) bool { return false })
	var said *protocol.Error
	if !errors.As(err, &said) || !strings.Contains(said.Text, "too many nodes") {
		t.Fatalf("the agent ends with %v", err)
	}
	p.forget(churn)
	p.honest()
	p.do("rmdir churn/1")
	p.fence(nil)
}
