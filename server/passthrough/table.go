package passthrough

import (
	"hash/maphash"
	"sync"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/nodeid"
)

// table finds nodes.
type table struct {
	mu    sync.RWMutex
	byID  nodeid.Table[node]
	byObj buckets
	last  uint64
	// numbered counts the nodes whose key is an inode number.
	numbered int
	// crowded, if not nil, is signalled by each insert above bound.
	bound   int
	crowded chan struct{}
}

func newTable() *table {
	t := &table{last: rootID}
	t.byObj.init()
	return t
}

func (t *table) get(id uint64) *node {
	t.mu.RLock()
	n := t.byID.Get(id)
	t.mu.RUnlock()
	return n
}

// full reports whether limit, if there is one, is reached.
func (t *table) full(limit func() int) bool {
	if limit == nil {
		return false
	}
	return t.len() >= limit()
}

func (t *table) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID.Len()
}

func (t *table) findLocked(obj notify.Object, m *mount) *node {
	n := *t.byObj.at(t.byObj.hash(obj))
	for n != nil && (n.dev.mnt != m || n.object() != obj) {
		n = n.next
	}
	return n
}

// find returns the node of obj on m with its lookup count raised.
func (t *table) find(obj notify.Object, m *mount) *node {
	t.mu.RLock()
	n := t.findLocked(obj, m)
	if n != nil {
		n.lookups.Add(1)
	}
	t.mu.RUnlock()
	return n
}

// ref raises the lookup count of the node, and reports whether there is one.
func (t *table) ref(id uint64) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := t.byID.Get(id)
	if n != nil {
		n.lookups.Add(1)
	}
	return n != nil
}

func (t *table) hasNumbered() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.numbered > 0
}

// insert adds fresh and gives it an id, or returns the node that another request
// inserted first. Either way the lookup count of the result is raised.
func (t *table) insert(fresh *node) (n *node, inserted bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.findLocked(fresh.object(), fresh.dev.mnt); n != nil {
		n.lookups.Add(1)
		return n, false
	}
	if fresh.id == 0 {
		t.last++
		fresh.id = t.last
	}
	fresh.lookups.Store(1)
	t.byObj.put(fresh)
	t.byID.Put(fresh.id, fresh)
	if fresh.htype == notify.TypeInode {
		t.numbered++
	}
	if t.crowded != nil && t.byID.Len() > t.bound {
		select {
		case t.crowded <- struct{}{}:
		default: // it is known already
		}
	}
	return fresh, true
}

// forget lowers the lookup count by count and returns the node if that was the end of it.
func (t *table) forget(id, count uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID.Get(id)
	if n == nil || id == rootID {
		return nil
	}
	if have := n.lookups.Load(); have > count {
		n.lookups.Store(have - count)
		return nil
	}
	n.lookups.Store(0)
	t.byID.Delete(id)
	t.byObj.remove(n)
	if n.htype == notify.TypeInode {
		t.numbered--
	}
	return n
}

// ids appends the nodeids of obj.
func (t *table) ids(dst []uint64, obj notify.Object) []uint64 {
	t.mu.RLock()
	for n := *t.byObj.at(t.byObj.hash(obj)); n != nil; n = n.next {
		if n.object() == obj {
			dst = append(dst, n.id)
		}
	}
	t.mu.RUnlock()
	return dst
}

// oldest appends up to count ids above after, in order; the root is left out.
func (t *table) oldest(dst []uint64, after uint64, count int) []uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID.Above(dst, max(after, rootID), t.last, count)
}

// drain empties the table and returns what was in it.
func (t *table) drain() []*node {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*node, 0, t.byID.Len())
	for _, n := range t.byID.All() {
		n.next = nil
		all = append(all, n)
	}
	t.byID.Clear()
	t.byObj.init()
	t.numbered = 0
	return all
}

// A segment of buckets is a page.
const segment = 512

// buckets is a hash table of nodes by object, chained through node.next. It grows and shrinks by
// one bucket at a time (linear hashing), so that no request waits until a large table is copied.
type buckets struct {
	seed     maphash.Seed
	segments []*[segment]*node
	// n buckets are in use; half is the power of two with half <= n < 2*half.
	n, half uint64
	count   uint64
}

// Chains are between these long on average.
const (
	longChain  = 2
	shortChain = 0.5
)

func (b *buckets) init() {
	*b = buckets{seed: maphash.MakeSeed(), segments: []*[segment]*node{new([segment]*node)}, n: 1, half: 1}
}

func (b *buckets) hash(obj notify.Object) uint64 {
	return maphash.String(b.seed, obj.Handle) ^ obj.FS ^ uint64(obj.Type)<<32
}

func (b *buckets) at(hash uint64) **node {
	i := hash & (2*b.half - 1)
	if i >= b.n {
		i &= b.half - 1
	}
	return b.bucket(i)
}

func (b *buckets) bucket(i uint64) **node { return &b.segments[i/segment][i%segment] }

func (b *buckets) put(n *node) {
	head := b.at(b.hash(n.object()))
	n.next, *head = *head, n
	if b.count++; b.count > longChain*b.n {
		b.split()
	}
}

func (b *buckets) remove(n *node) {
	at := b.at(b.hash(n.object()))
	for *at != n {
		at = &(*at).next
	}
	*at, n.next = n.next, nil
	if b.count--; float64(b.count) < shortChain*float64(b.n) && b.n > 1 {
		b.merge()
	}
}

// split divides the next bucket in two.
func (b *buckets) split() {
	fresh := b.n
	if fresh == uint64(len(b.segments))*segment {
		b.segments = append(b.segments, new([segment]*node))
	}
	from, to := b.bucket(fresh-b.half), b.bucket(fresh)
	for *from != nil {
		n := *from
		if b.hash(n.object())&(2*b.half-1) == fresh {
			*from, n.next, *to = n.next, *to, n
		} else {
			from = &n.next
		}
	}
	if b.n++; b.n == 2*b.half {
		b.half = b.n
	}
}

// merge takes the last split back.
func (b *buckets) merge() {
	if b.n == b.half {
		b.half /= 2
	}
	b.n--
	last, into := b.bucket(b.n), b.bucket(b.n-b.half)
	for *into != nil {
		into = &(*into).next
	}
	*into, *last = *last, nil
	// One segment stays ahead, so that growing and shrinking around its end allocates nothing.
	if keep := b.n/segment + 2; keep < uint64(len(b.segments)) {
		b.segments[keep] = nil
		b.segments = b.segments[:keep]
	}
}
