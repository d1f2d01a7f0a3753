package passthrough

import (
	"sync"

	"github.com/heraldfs/heraldfs/internal/sys"
)

// fdRing bounds the descriptors that directories keep for speed. A hit touches
// only the node; who has not been used since the hand passed is evicted.
type fdRing struct {
	max int

	mu    sync.Mutex
	nodes []*node
	hand  int
}

// add gives fd to n and returns the descriptor to use, with a reference for the
// caller. It may be another one, if n got it meanwhile.
func (r *fdRing) add(n *node, fd *sys.FD) *sys.FD {
	r.mu.Lock()
	n.mu.Lock()
	switch {
	case n.gone:
		n.mu.Unlock()
		r.mu.Unlock()
		return fd
	case n.heldLocked().cached != nil:
		old := n.holds.cached
		old.Acquire()
		n.mu.Unlock()
		r.mu.Unlock()
		fd.Release()
		return old
	}
	fd.Acquire()
	h := n.holdLocked()
	h.cached, h.used, h.slot = fd, true, int32(len(r.nodes))
	r.nodes = append(r.nodes, n)
	n.mu.Unlock()
	evicted := r.evictLocked(r.max)
	r.mu.Unlock()
	releaseAll(evicted)
	return fd
}

// evictLocked takes descriptors out until at most keep are left.
func (r *fdRing) evictLocked(keep int) (out []*sys.FD) {
	for len(r.nodes) > keep {
		if r.hand >= len(r.nodes) {
			r.hand = 0
		}
		n := r.nodes[r.hand]
		n.mu.Lock()
		if n.holds.used {
			n.holds.used = false
			n.mu.Unlock()
			r.hand++
			continue
		}
		out = append(out, r.takeLocked(n))
		n.mu.Unlock()
	}
	return out
}

// takeLocked removes n, whose mu is held too.
func (r *fdRing) takeLocked(n *node) *sys.FD {
	fd := n.holds.cached
	last := r.nodes[len(r.nodes)-1]
	r.nodes[n.holds.slot] = last
	if last != n {
		last.setSlot(n.holds.slot)
	}
	r.nodes[len(r.nodes)-1] = nil
	r.nodes = r.nodes[:len(r.nodes)-1]
	n.holds.cached = nil
	return fd
}

// setSlot needs fdRing.mu only: nobody reads slot without it, and who is in the ring has holds.
func (n *node) setSlot(slot int32) { n.holds.slot = slot }

// drop closes n's cached descriptor.
func (r *fdRing) drop(n *node) {
	r.mu.Lock()
	n.mu.Lock()
	var fd *sys.FD
	if n.heldLocked().cached != nil {
		fd = r.takeLocked(n)
	}
	n.mu.Unlock()
	r.mu.Unlock()
	fd.Release()
}

// shrink closes half of what is cached, because descriptors have run out.
func (r *fdRing) shrink() {
	r.mu.Lock()
	evicted := r.evictLocked(len(r.nodes) / 2)
	r.mu.Unlock()
	releaseAll(evicted)
}

func releaseAll(fds []*sys.FD) {
	for _, fd := range fds {
		fd.Release()
	}
}
