package tree

import (
	"fmt"
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

// Type says what a Record tells.
type Type uint8

// The types. Ready, Overflow and Rescan are about the watch itself.
const (
	TypeCreate Type = iota + 1
	TypeDelete
	TypeModify
	TypeAttrib
	TypeOpen
	TypeCloseWrite
	TypeCloseNowrite
	TypeAccess
	TypeRename
	TypeExchange
	// Ready: no change that is made later is missed.
	TypeReady
	// Overflow: the kernel dropped events.
	TypeOverflow
	// Rescan: what is below Path has to be compared with the disk.
	TypeRescan
)

var typeNames = [...]string{
	TypeCreate: "create", TypeDelete: "delete", TypeModify: "modify", TypeAttrib: "attrib", TypeOpen: "open",
	TypeCloseWrite: "close_write", TypeCloseNowrite: "close_nowrite", TypeAccess: "access",
	TypeRename: "rename", TypeExchange: "exchange",
	TypeReady: "ready", TypeOverflow: "overflow", TypeRescan: "rescan",
}

func (t Type) String() string {
	if int(t) < len(typeNames) && typeNames[t] != "" {
		return typeNames[t]
	}
	return fmt.Sprintf("type(%d)", uint8(t))
}

// IsControl reports whether the record is about the watch, not about a file.
func (t Type) IsControl() bool { return t >= TypeReady }

// Record is one change, by path.
type Record struct {
	Type  Type
	IsDir bool
	// Root is the index in Options.Roots of the root that Path is relative to.
	// "." is the root itself. For a rename Path is the new name, and empty if the
	// object left the watched roots.
	Root int
	Path string
	// OldRoot and OldPath are a rename's source, empty if the object came from
	// outside; for an exchange, the other name.
	OldRoot int
	OldPath string
	Cookie  uint32
	Pid     int32
	Time    time.Time
	// Object is what the record is about, Dir the directory that Path's last component is in, and
	// OldDir OldPath's; Other is an exchange's other object, which was at Path. Zero where the
	// backend does not know.
	Object, Dir, OldDir, Other notify.Object
	// OtherIsDir tells of Other. Verify says that the kernel may have merged later
	// changes of the same names into this record.
	OtherIsDir, Verify bool
	// Found says that no event told this: it was found by comparing or listing.
	Found bool
	// Origin is not the watch's to know: it is for records that come from elsewhere.
	Origin string
}

func (r Record) String() string {
	if r.Type == TypeRename || r.Type == TypeExchange {
		return fmt.Sprintf("%s %q -> %q", r.Type, r.OldPath, r.Path)
	}
	return fmt.Sprintf("%s %q", r.Type, r.Path)
}

// plainType is the record type of an operation on one name, and zero for the others.
func plainType(op notify.Op) Type {
	switch op {
	case notify.OpCreate:
		return TypeCreate
	case notify.OpDelete:
		return TypeDelete
	case notify.OpModify:
		return TypeModify
	case notify.OpAttrib:
		return TypeAttrib
	case notify.OpOpen:
		return TypeOpen
	case notify.OpCloseWrite:
		return TypeCloseWrite
	case notify.OpCloseNowrite:
		return TypeCloseNowrite
	case notify.OpAccess:
		return TypeAccess
	}
	return 0
}

// State is what a path shows on the disk at one moment.
type State struct {
	Known        bool // it could be found out
	Exists       bool // the fields below count
	Object       notify.Object
	Ino, Size    uint64
	Mtime, Ctime int64 // nanoseconds since 1970
}
