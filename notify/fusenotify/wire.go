package fusenotify

import (
	"encoding/binary"
	"fmt"
)

// Code is enum fuse_notify_code of include/uapi/linux/fuse.h.
type Code int32

// The codes that this package sends.
const (
	CodeInvalInode Code = 2
	CodeInvalEntry Code = 3
	CodeStore      Code = 4
	CodeDelete     Code = 6
	CodeResend     Code = 7
	CodeIncEpoch   Code = 8
	CodePrune      Code = 9

	codeMax = 9
)

// firstProbed is the first code that a kernel we run on may lack. For the codes
// before it EINVAL means that the message is bad.
const firstProbed = CodeResend

func (c Code) String() string {
	switch c {
	case CodeInvalInode:
		return "INVAL_INODE"
	case CodeInvalEntry:
		return "INVAL_ENTRY"
	case CodeStore:
		return "STORE"
	case CodeDelete:
		return "DELETE"
	case CodeResend:
		return "RESEND"
	case CodeIncEpoch:
		return "INC_EPOCH"
	case CodePrune:
		return "PRUNE"
	}
	return fmt.Sprintf("notify code %d", int32(c))
}

// ExpireOnly is FUSE_EXPIRE_ONLY: the entry is asked for again when it is next
// used, instead of being thrown out.
const ExpireOnly uint32 = 1 << 0

// The structs are only the documentation of the layout and the subject of the
// size tests; messages are put together field by field in host order.

//	struct fuse_out_header {
//		uint32_t	len;
//		int32_t		error;
//		uint64_t	unique;
//	};
type outHeader struct {
	Len    uint32
	Error  int32
	Unique uint64
}

//	struct fuse_notify_inval_inode_out {
//		uint64_t	ino;
//		int64_t		off;
//		int64_t		len;
//	};
type invalInodeOut struct {
	Ino uint64
	Off int64
	Len int64
}

//	struct fuse_notify_inval_entry_out {
//		uint64_t	parent;
//		uint32_t	namelen;
//		uint32_t	flags;
//	};
type invalEntryOut struct {
	Parent  uint64
	NameLen uint32
	Flags   uint32
}

//	struct fuse_notify_delete_out {
//		uint64_t	parent;
//		uint64_t	child;
//		uint32_t	namelen;
//		uint32_t	padding;
//	};
type deleteOut struct {
	Parent  uint64
	Child   uint64
	NameLen uint32
	Padding uint32
}

//	struct fuse_notify_store_out {
//		uint64_t	nodeid;
//		uint64_t	offset;
//		uint32_t	size;
//		uint32_t	padding;
//	};
type storeOut struct {
	NodeID  uint64
	Offset  uint64
	Size    uint32
	Padding uint32
}

//	struct fuse_notify_prune_out {
//		uint32_t	count;
//		uint32_t	padding;
//		uint64_t	spare;
//	};
//
// It is followed by count node ids of 64 bits.
type pruneOut struct {
	Count   uint32
	Padding uint32
	Spare   uint64
}

const outHeaderSize = 16

func (m *message) begin(code Code) {
	m.buf = append(m.buf[:0], 0, 0, 0, 0) // len, known at the end
	m.u32(uint32(code))
	m.u64(0)
}

// end fills in the length.
func (m *message) end() {
	binary.NativeEndian.PutUint32(m.buf, uint32(len(m.buf)))
}

func (m *message) u32(v uint32) { m.buf = binary.NativeEndian.AppendUint32(m.buf, v) }
func (m *message) u64(v uint64) { m.buf = binary.NativeEndian.AppendUint64(m.buf, v) }

// name appends a name and the NUL that the kernel wants behind it.
func (m *message) name(name string) {
	m.buf = append(m.buf, name...)
	m.buf = append(m.buf, 0)
}
