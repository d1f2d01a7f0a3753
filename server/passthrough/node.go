package passthrough

import (
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

const rootID = 1

// inlineHandle is how many bytes of handle a node has room for: those of btrfs are the longest of the common ones.
const inlineHandle = 20

// node is an object that the guest knows. There can be millions: what most of them do
// not have is in holds, and the order of the fields leaves no gaps.
type node struct {
	id  uint64
	dev *device
	// next is a node of the same bucket. Guarded by the lock of its shard.
	next *node
	// lookups is raised under that lock for reading and lowered under it for writing.
	lookups atomic.Uint64

	mu sync.Mutex
	// parent and name are where the node was seen last: a hint. The length of name is nameLen.
	parent uint64
	name   *byte
	// holds is made when it is needed, and stays.
	holds *holds

	flags   atomic.Uint32
	htype   int32 // notify.Object.Type
	nameLen uint16
	gone    bool
	hlen    uint8
	handle  [inlineHandle]byte // if hlen is not more
}

// holds is what a node holds besides its identity. It is guarded by node.mu.
type holds struct {
	// handle is the handle if it is long. It never changes.
	handle string
	// pin is a descriptor for as long as the node lives.
	pin *sys.FD
	// cached belongs to the fdRing, which it is in at slot.
	cached *sys.FD
	slot   int32
	used   bool
	// opens counts, with Options.Backing, the opens that the kernel has not released: above zero none of them
	// is passed through, below zero all of them, by the id backing.
	opens, backing int32
	// files are what the guest has open, or with NoOpen, what is open for it.
	files *openFile
	locks *lockState
}

// noHolds is read in place of what a node does not have.
var noHolds holds

// newNode makes a node of h on dev. mode is st_mode.
func newNode(dev *device, mode uint32, htype int32, handle []byte) *node {
	n := &node{dev: dev, htype: htype, hlen: uint8(len(handle))} // at most MAX_HANDLE_SZ, 128
	n.flags.Store(mode & unix.S_IFMT << typeShift)
	if len(handle) <= inlineHandle {
		copy(n.handle[:], handle)
	} else {
		n.holds = &holds{handle: string(handle)}
	}
	return n
}

// object is the key of n. The handle's bytes are n's own: who keeps them keeps n.
func (n *node) object() notify.Object {
	obj := notify.Object{FS: n.dev.fsid, Type: n.htype}
	if n.hlen <= inlineHandle {
		obj.Handle = unsafe.String(&n.handle[0], int(n.hlen))
	} else {
		obj.Handle = n.holds.handle
	}
	return obj
}

// heldLocked returns what n holds, to be read.
func (n *node) heldLocked() *holds {
	if n.holds == nil {
		return &noHolds
	}
	return n.holds
}

// holdLocked returns what n holds, to be changed.
func (n *node) holdLocked() *holds {
	if n.holds == nil {
		n.holds = new(holds)
	}
	return n.holds
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
	if n.is(hostIno) {
		return host
	}
	return n.dev.ino(host)
}

// covered reports whether the Marker hears of n by every name.
func (fs *FS) covered(n *node) bool {
	c, ok := fs.opts.Marker.(interface{ Covered(notify.Object) bool })
	return ok && c.Covered(n.object())
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
	// hostIno says that the guest sees the host's inode number, whatever the device.
	hostIno

	// Above them are the S_IFMT bits; an inode never changes them.
	typeShift = 16
)

func (n *node) is(flag uint32) bool { return n.flags.Load()&flag != 0 }
func (n *node) set(flag uint32)     { n.flags.Or(flag) }

// typ returns the S_IFMT bits.
func (n *node) typ() uint32 { return n.flags.Load() >> typeShift }

func (n *node) isDir() bool { return n.typ() == unix.S_IFDIR }

func (n *node) isDirMask() notify.Mask {
	if n.isDir() {
		return notify.IsDir
	}
	return 0
}

// sawAt records where the node was seen.
func (n *node) sawAt(parent uint64, name string) {
	n.mu.Lock()
	if n.parent != parent || n.nameLocked() != name {
		n.parent, n.name, n.nameLen = parent, unsafe.StringData(name), uint16(len(name)) // below PATH_MAX
	}
	n.mu.Unlock()
}

func (n *node) nameLocked() string { return unsafe.String(n.name, int(n.nameLen)) }

func (n *node) hint() (parent uint64, name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.parent, n.nameLocked()
}

// setPin gives fd to n, unless it has a pin already or is forgotten.
func (n *node) setPin(fd *sys.FD) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.gone || n.heldLocked().pin != nil {
		return false
	}
	n.holdLocked().pin = fd
	return true
}

// dropPin takes fd back if it is still n's.
func (n *node) dropPin(fd *sys.FD) {
	n.mu.Lock()
	mine := n.heldLocked().pin == fd
	if mine {
		n.holds.pin = nil
	}
	n.mu.Unlock()
	if mine {
		fd.Release()
	}
}
