package notify

import (
	"fmt"
	"time"
)

// Object names a file system object for its whole life. It is comparable, so
// it can key a map; the zero Object means "not known".
type Object struct {
	// FS is the file system: f_fsid of statfs(2), low word first, as a
	// fanotify record carries it.
	FS uint64
	// Type is the handle type of name_to_handle_at(2), or TypeInode.
	Type int32
	// Handle is f_handle of name_to_handle_at(2), or for TypeInode eight bytes of
	// inode number and eight of device number, both in host order.
	Handle string
}

// TypeInode marks an Object on a file system without file handles. Such an
// Object is good only while somebody holds a descriptor of it.
const TypeInode int32 = -1

// IsZero reports whether the object is not known.
func (o Object) IsZero() bool { return o == Object{} }

func (o Object) String() string {
	if o.IsZero() {
		return "-"
	}
	return fmt.Sprintf("%x:%x:%x", o.FS, o.Type, o.Handle)
}

// Op is the one thing that an Event tells.
type Op uint8

// The operations. A rename from or to a place that is not watched is an
// OpRename with one side's directory zero.
const (
	OpCreate Op = iota + 1
	OpDelete
	OpRename
	OpExchange
	OpModify
	OpAttrib
	OpOpen
	OpCloseWrite
	OpCloseNowrite
	OpAccess
	// OpDeleteSelf tells that the last reference to Object is gone. Only
	// backends that hear of it without a watch on the object send it.
	OpDeleteSelf
	// OpLinkCount is an ATTRIB that the kernel told only to watchers of the
	// object itself: a link to it was made or removed, under any name.
	OpLinkCount
	// OpMount and OpUnmount tell that Dir/Name became, or ceased to be, the root of
	// another file system.
	OpMount
	OpUnmount
	// OpOverflow tells that events were lost: everything below Dir, or
	// everything if Dir is zero, has to be compared again.
	OpOverflow
)

var opNames = [...]string{
	OpCreate: "create", OpDelete: "delete", OpRename: "rename", OpExchange: "exchange",
	OpModify: "modify", OpAttrib: "attrib", OpOpen: "open", OpCloseWrite: "close_write",
	OpCloseNowrite: "close_nowrite", OpAccess: "access", OpDeleteSelf: "delete_self",
	OpLinkCount: "link_count", OpMount: "mount", OpUnmount: "unmount", OpOverflow: "overflow",
}

func (o Op) String() string {
	if int(o) < len(opNames) && opNames[o] != "" {
		return opNames[o]
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Mask returns the inotify bits that a watcher of the directory sees for o, without IsDir.
func (o Op) Mask() Mask {
	switch o {
	case OpCreate:
		return Create
	case OpDelete:
		return Delete
	case OpRename, OpExchange:
		return Moves
	case OpModify:
		return Modify
	case OpAttrib, OpLinkCount:
		return Attrib
	case OpOpen:
		return Open
	case OpCloseWrite:
		return CloseWrite
	case OpCloseNowrite:
		return CloseNowrite
	case OpAccess:
		return Access
	case OpDeleteSelf:
		return DeleteSelf
	}
	return 0
}

// Event is one thing that happened to one name.
type Event struct {
	Op    Op
	IsDir bool
	// Dir and Name are the entry that the event is about; for a rename its
	// source. Name is bytes, not text. A Name of "." means Dir itself
	// (fanotify tells ATTRIB of a directory that way).
	Dir  Object
	Name string
	// NewDir and NewName are where a rename went, or an exchange's other side.
	NewDir  Object
	NewName string
	// NewObject and NewIsDir tell of the other object of an exchange, which was at NewName.
	NewObject Object
	NewIsDir  bool
	// Object is what Name referred to, if the backend knows.
	Object Object
	// Cookie is inotify's, and zero where the backend has none.
	Cookie uint32
	// Pid is the thread group that did it, zero if not known.
	Pid int32
	// Verify says that the kernel may have merged later changes of the same name
	// into this event: when nothing else is pending for the name, the consumer compares
	// it with the host and makes up the difference.
	Verify bool
	// Seq counts the events of one Source from 1.
	Seq uint64
	// Time is when the Source read it.
	Time time.Time
	// Remote is set by Sources on other machines.
	Remote *Remote
}

func (e Event) String() string {
	dir := ""
	if e.IsDir {
		dir = ",ISDIR"
	}
	if e.Op == OpRename || e.Op == OpExchange {
		return fmt.Sprintf("%s%s %s/%q -> %s/%q", e.Op, dir, e.Dir, e.Name, e.NewDir, e.NewName)
	}
	return fmt.Sprintf("%s%s %s/%q", e.Op, dir, e.Dir, e.Name)
}

// Raw is one kernel record before coalescing. Mask can hold several bits: fanotify
// merges what it has not handed out yet.
type Raw struct {
	Mask    Mask
	Dir     Object
	Name    string
	NewDir  Object // Rename only
	NewName string
	Object  Object
	Cookie  uint32
	Pid     int32
	// Moved are the directories that have been moved lately of those that lead to Dir, Dir included; nil is
	// none. A record must not overtake the rename of one of them.
	Moved *Moved
}

// Moved is one directory of a list.
type Moved struct {
	Dir Object
	// Next is one further up.
	Next *Moved
}

// Has reports whether dir is in the list.
func (m *Moved) Has(dir Object) bool {
	for ; m != nil; m = m.Next {
		if m.Dir == dir {
			return true
		}
	}
	return false
}
