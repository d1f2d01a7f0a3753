package replay

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/heraldfs/heraldfs/notify"
)

// Tree is what the replayer asks of the file system that FS wraps.
type Tree interface {
	// NodeIDs appends the nodeids by which the guest knows obj, one per mount.
	// It is called for every event on the host and must be cheap.
	NodeIDs(dst []uint64, obj notify.Object) []uint64
	// Object is the opposite.
	Object(nodeid uint64) (notify.Object, bool)
	// Obtain finds the live object obj, or if it is zero what parent/name is now,
	// fills a whole entry and counts one lookup; ENOENT if it is gone.
	Obtain(obj notify.Object, parent uint64, name string, out *fuse.EntryOut) fuse.Status
	// Attr gives fresh attributes, ESTALE or ENOENT if the object is gone.
	Attr(nodeid uint64, out *fuse.Attr) fuse.Status
	// Locate tells where a directory is now on the host.
	Locate(obj notify.Object) (parent notify.Object, name string, err error)
	// Names calls yield for every name in the directory, "." and ".." left out.
	Names(nodeid uint64, yield func(name string, isDir bool) bool) error
	// WithFD calls use with a descriptor of the object on the host.
	WithFD(nodeid uint64, use func(fd int) error) error
}

// hinted is a Tree that likes to hear what the host did: Moved where an object is
// now, Drop that a directory is gone and should not be held open.
type hinted interface {
	Moved(obj, dir notify.Object, name string)
	Drop(obj notify.Object)
}

// Notifier drops what the guest's kernel has cached. Its errors are those of
// package fusenotify: "not cached" is none that matters.
type Notifier interface {
	InvalInode(nodeid uint64, off, length int64) error
	InvalEntry(parent uint64, name string, expireOnly bool) error
}
