package passthrough

import (
	"hash/maphash"

	"github.com/heraldfs/heraldfs/notify"
)

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

func (b *buckets) init(seed maphash.Seed) {
	*b = buckets{seed: seed, segments: []*[segment]*node{new([segment]*node)}, n: 1, half: 1}
}

func (b *buckets) hash(obj notify.Object) uint64 { return hashObject(b.seed, obj) }

func hashObject(seed maphash.Seed, obj notify.Object) uint64 {
	return maphash.String(seed, obj.Handle) ^ obj.FS ^ uint64(obj.Type)<<32
}

func (b *buckets) at(hash uint64) **node {
	i := hash & (2*b.half - 1)
	if i >= b.n {
		i &= b.half - 1
	}
	return b.bucket(i)
}

func (b *buckets) bucket(i uint64) **node { return &b.segments[i/segment][i%segment] }

func (b *buckets) put(hash uint64, n *node) {
	head := b.at(hash)
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
