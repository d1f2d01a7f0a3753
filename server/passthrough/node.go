package passthrough

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

const rootID = 1

// node is an object that the guest knows.
type node struct {
	id  uint64
	mnt *mount
	obj notify.Object
	dev *device
	typ uint32 // S_IFMT bits; an inode never changes them
	// hostIno says that the guest sees the host's inode number, whatever the device.
	hostIno bool

	// next is a node of the same hash, as the same object on another mount. Guarded by table.mu.
	next *node
	// lookups is raised under table.mu for reading and lowered under it for writing.
	lookups atomic.Uint64
	flags   atomic.Uint32

	mu sync.Mutex
	// parent and name are where the node was seen last: a hint.
	parent uint64
	name   string
	// pin is a descriptor for as long as the node lives.
	pin *sys.FD
	// cached belongs to the fdRing, which it is in at slot.
	cached *sys.FD
	slot   int32
	used   bool
	gone   bool
	// opens counts, with Options.Backing, the opens that the kernel has not released: above zero none of them
	// is passed through, below zero all of them, by the id backing.
	opens, backing int32
	// files are what the guest has open, or with NoOpen, what is open for it.
	files *openFile
	locks *lockState
}

// cacheable reports whether the guest may keep what st says of n, and its pages over opens.
func (fs *FS) cacheable(n *node, nlink uint64) bool {
	if (fs.opts.Marker != nil || fs.opts.Foreign) && !n.isDir() {
		if nlink > 1 && (fs.opts.Foreign || !fs.covered(n)) {
			n.set(linked)
		} else {
			n.flags.And(^uint32(linked))
		}
	}
	return !n.is(volatile) && !n.is(linked)
}

// ino maps an inode number of n's device to the guest's.
func (n *node) ino(host uint64) uint64 {
	if n.hostIno {
		return host
	}
	return n.dev.ino(host)
}

// covered reports whether the Marker hears of n by every name.
func (fs *FS) covered(n *node) bool {
	c, ok := fs.opts.Marker.(interface{ Covered(notify.Object) bool })
	return ok && c.Covered(n.obj)
}

// Bits of node.flags.
const (
	// volatile is set when changes of the object are not told to anybody: it may not be cached.
	volatile = 1 << iota
	marked
	// linked is set while a file has other names: in a directory that is not marked they
	// can be written by without anybody being told.
	linked
	// rewritten is set by an open that can write beside passthrough: the kernel's pages are old then.
	rewritten
	// mapped is set if such an open can be mapped for writing: the mapping is of the backing file, and outlives its
	// descriptor.
	mapped
)

func (n *node) is(flag uint32) bool { return n.flags.Load()&flag != 0 }
func (n *node) set(flag uint32)     { n.flags.Or(flag) }

func (n *node) isDir() bool { return n.typ == unix.S_IFDIR }

func (n *node) isDirMask() notify.Mask {
	if n.isDir() {
		return notify.IsDir
	}
	return 0
}

// sawAt records where the node was seen.
func (n *node) sawAt(parent uint64, name string) {
	n.mu.Lock()
	if n.parent != parent || n.name != name {
		n.parent, n.name = parent, name
	}
	n.mu.Unlock()
}

func (n *node) hint() (parent uint64, name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.parent, n.name
}

// setPin gives fd to n, unless it has a pin already or is forgotten.
func (n *node) setPin(fd *sys.FD) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pin != nil || n.gone {
		return false
	}
	n.pin = fd
	return true
}

// dropPin takes fd back if it is still n's.
func (n *node) dropPin(fd *sys.FD) {
	n.mu.Lock()
	mine := n.pin == fd
	if mine {
		n.pin = nil
	}
	n.mu.Unlock()
	if mine {
		fd.Release()
	}
}

// table finds nodes.
type table struct {
	mu   sync.RWMutex
	byID map[uint64]*node
	// byObj chains, by next, the nodes whose object has the same hash: an Object as a key would cost
	// twice the room.
	byObj map[uint64]*node
	seed  maphash.Seed
	last  uint64
	// numbered counts the nodes whose key is an inode number.
	numbered int
}

func newTable() *table {
	return &table{byID: map[uint64]*node{}, byObj: map[uint64]*node{}, seed: maphash.MakeSeed(), last: rootID}
}

func (t *table) hash(obj *notify.Object) uint64 {
	return maphash.String(t.seed, obj.Handle) ^ obj.FS ^ uint64(obj.Type)<<32
}

func (t *table) get(id uint64) *node {
	t.mu.RLock()
	n := t.byID[id]
	t.mu.RUnlock()
	return n
}

// full reports whether limit, if there is one, is reached.
func (t *table) full(limit func() int) bool {
	if limit == nil {
		return false
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byID) >= limit()
}

func (t *table) findLocked(obj notify.Object, m *mount) *node {
	n := t.byObj[t.hash(&obj)]
	for n != nil && (n.mnt != m || n.obj != obj) {
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
	if n := t.findLocked(fresh.obj, fresh.mnt); n != nil {
		n.lookups.Add(1)
		return n, false
	}
	if fresh.id == 0 {
		t.last++
		fresh.id = t.last
	}
	fresh.lookups.Store(1)
	h := t.hash(&fresh.obj)
	fresh.next = t.byObj[h]
	t.byObj[h] = fresh
	t.byID[fresh.id] = fresh
	if fresh.obj.Type == notify.TypeInode {
		t.numbered++
	}
	return fresh, true
}

// forget lowers the lookup count by count and returns the node if that was the end of it.
func (t *table) forget(id, count uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || id == rootID {
		return nil
	}
	if have := n.lookups.Load(); have > count {
		n.lookups.Store(have - count)
		return nil
	}
	n.lookups.Store(0)
	t.removeLocked(n)
	return n
}

func (t *table) removeLocked(n *node) {
	delete(t.byID, n.id)
	h := t.hash(&n.obj)
	head := t.byObj[h]
	if head == n {
		if n.next == nil {
			delete(t.byObj, h)
		} else {
			t.byObj[h] = n.next
		}
	} else {
		for head.next != n {
			head = head.next
		}
		head.next = n.next
	}
	n.next = nil
	if n.obj.Type == notify.TypeInode {
		t.numbered--
	}
}

// ids appends the nodeids of obj.
func (t *table) ids(dst []uint64, obj notify.Object) []uint64 {
	t.mu.RLock()
	for n := t.byObj[t.hash(&obj)]; n != nil; n = n.next {
		if n.obj == obj {
			dst = append(dst, n.id)
		}
	}
	t.mu.RUnlock()
	return dst
}

// drain empties the table and returns what was in it.
func (t *table) drain() []*node {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*node, 0, len(t.byID))
	for _, n := range t.byID {
		n.next = nil
		all = append(all, n)
	}
	clear(t.byID)
	clear(t.byObj)
	t.numbered = 0
	return all
}
