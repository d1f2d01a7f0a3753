package passthrough

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/nodeid"
)

// shards is how many parts the table has. Each has its own lock, so that requests about different files
// seldom wait for each other.
const shards = 16

// table finds nodes. An object's hash says in which shard it is, and so does its nodeid: the ids are dealt
// to the shards in pages, so that each counts up in its own.
//
//	nodeid      0..63     64..127   ...  1024..1087
//	shard       0         1         ...  0
type table struct {
	seed   maphash.Seed
	root   atomic.Pointer[node] // its id says nothing about its shard
	shards [shards]shard
	count  atomic.Int64
	// numbered counts the nodes whose key is an inode number.
	numbered atomic.Int64
	// crowded, if not nil, is signalled by each insert above bound.
	bound   int
	crowded chan struct{}
}

type shard struct {
	mu    sync.RWMutex
	byID  nodeid.Table[node]
	byObj buckets
	next  uint64   // the id of the next node
	_     [64]byte // two locks in one cache line would be as one
}

func newTable() *table {
	t := &table{seed: maphash.MakeSeed()}
	for i := range t.shards {
		s := &t.shards[i]
		s.byObj.init(t.seed)
		s.next = uint64(i) * nodeid.PageSize
	}
	t.shards[0].next = rootID + 1
	return t
}

// ofObject returns the shard of obj, and the hash of obj, of which the low bits choose the bucket.
func (t *table) ofObject(obj notify.Object) (*shard, uint64) {
	h := hashObject(t.seed, obj)
	return &t.shards[h>>48%shards], h
}

// ofID returns the shard of a nodeid that is not the root's.
func (t *table) ofID(id uint64) *shard { return &t.shards[id/nodeid.PageSize%shards] }

func (t *table) get(id uint64) *node {
	if id == rootID {
		return t.root.Load()
	}
	s := t.ofID(id)
	s.mu.RLock()
	n := s.byID.Get(id)
	s.mu.RUnlock()
	return n
}

// full reports whether limit, if there is one, is reached.
func (t *table) full(limit func() int) bool {
	if limit == nil {
		return false
	}
	return t.len() >= limit()
}

func (t *table) len() int { return int(t.count.Load()) }

func (s *shard) find(hash uint64, obj notify.Object, m *mount) *node {
	n := *s.byObj.at(hash)
	for n != nil && (n.dev.mnt != m || n.object() != obj) {
		n = n.next
	}
	return n
}

// find returns the node of obj on m with its lookup count raised.
func (t *table) find(obj notify.Object, m *mount) *node {
	s, hash := t.ofObject(obj)
	s.mu.RLock()
	n := s.find(hash, obj, m)
	if n != nil {
		n.lookups.Add(1)
	}
	s.mu.RUnlock()
	return n
}

// ref raises the lookup count of the node, and reports whether there is one.
func (t *table) ref(id uint64) bool {
	if id == rootID {
		n := t.root.Load()
		if n != nil {
			n.lookups.Add(1)
		}
		return n != nil
	}
	s := t.ofID(id)
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := s.byID.Get(id)
	if n != nil {
		n.lookups.Add(1)
	}
	return n != nil
}

func (t *table) hasNumbered() bool { return t.numbered.Load() > 0 }

// insert adds fresh and gives it an id, or returns the node that another request
// inserted first. Either way the lookup count of the result is raised.
func (t *table) insert(fresh *node) (n *node, inserted bool) {
	s, hash := t.ofObject(fresh.object())
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.find(hash, fresh.object(), fresh.dev.mnt); n != nil {
		n.lookups.Add(1)
		return n, false
	}
	fresh.lookups.Store(1)
	if fresh.id == rootID {
		t.root.Store(fresh)
	} else {
		fresh.id = s.next
		s.byID.Put(fresh.id, fresh)
		if s.next++; s.next%nodeid.PageSize == 0 {
			s.next += (shards - 1) * nodeid.PageSize
		}
	}
	s.byObj.put(hash, fresh)
	if fresh.htype == notify.TypeInode {
		t.numbered.Add(1)
	}
	if t.count.Add(1) > int64(t.bound) && t.crowded != nil {
		select {
		case t.crowded <- struct{}{}:
		default: // it is known already
		}
	}
	return fresh, true
}

// forget lowers the lookup count by count and returns the node if that was the end of it.
func (t *table) forget(id, count uint64) *node {
	if id == rootID {
		return nil
	}
	s := t.ofID(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.byID.Get(id)
	if n == nil {
		return nil
	}
	if have := n.lookups.Load(); have > count {
		n.lookups.Store(have - count)
		return nil
	}
	n.lookups.Store(0)
	s.byID.Delete(id)
	s.byObj.remove(n)
	if n.htype == notify.TypeInode {
		t.numbered.Add(-1)
	}
	t.count.Add(-1)
	return n
}

// ids appends the nodeids of obj.
func (t *table) ids(dst []uint64, obj notify.Object) []uint64 {
	s, hash := t.ofObject(obj)
	s.mu.RLock()
	for n := *s.byObj.at(hash); n != nil; n = n.next {
		if n.object() == obj {
			dst = append(dst, n.id)
		}
	}
	s.mu.RUnlock()
	return dst
}

// oldest appends up to count ids above after, in order; the root is left out. Objects fall to the shards evenly, so
// a lower id is about an older one.
func (t *table) oldest(dst []uint64, after uint64, count int) []uint64 {
	next := uint64(0)
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		next = max(next, s.next)
		s.mu.RUnlock()
	}
	want := len(dst) + count
	for after = max(after, rootID); after+1 < next && len(dst) < want; {
		s, end := t.ofID(after+1), (after+1)/nodeid.PageSize*nodeid.PageSize+nodeid.PageSize-1
		s.mu.RLock()
		dst = s.byID.Above(dst, after, end, want-len(dst))
		s.mu.RUnlock()
		after = end
	}
	return dst
}

// all returns every node.
func (t *table) all() []*node {
	all := make([]*node, 0, t.len())
	if root := t.root.Load(); root != nil {
		all = append(all, root)
	}
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		for _, n := range s.byID.All() {
			all = append(all, n)
		}
		s.mu.RUnlock()
	}
	return all
}

// drain empties the table and returns what was in it.
func (t *table) drain() []*node {
	all := t.all()
	t.root.Store(nil)
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		s.byID.Clear()
		s.byObj.init(t.seed)
		s.mu.Unlock()
	}
	for _, n := range all {
		n.next = nil
	}
	t.count.Store(0)
	t.numbered.Store(0)
	return all
}
