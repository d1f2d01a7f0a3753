package sys

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// atHandleFID is AT_HANDLE_FID of include/uapi/linux/fcntl.h (6.5).
const atHandleFID = 0x200

// maxHandle is MAX_HANDLE_SZ of include/linux/exportfs.h.
const maxHandle = 128

// Handle is the kernel's
//
//	struct file_handle {
//		__u32 handle_bytes;
//		int handle_type;
//		unsigned char f_handle[];
//	};
//
// with room for the longest. unix.FileHandle is not used because it costs two
// system calls and an allocation for each handle.
type Handle struct {
	size uint32
	Type int32
	data [maxHandle]byte
}

// Bytes is f_handle; it refers to h.
func (h *Handle) Bytes() []byte { return h.data[:h.size] }

// HandleKind says what a Handle is good for.
type HandleKind uint8

const (
	// HandleNone: the file system has no handles.
	HandleNone HandleKind = iota
	// HandleFID identifies and cannot be opened.
	HandleFID
	// HandleOpenable can be opened by open_by_handle_at(2).
	HandleOpenable
)

func (k HandleKind) String() string {
	switch k {
	case HandleFID:
		return "identify objects, but cannot be opened"
	case HandleOpenable:
		return "work"
	}
	return "none on this file system"
}

// HandleOf fills h with the handle of the object that fd (O_PATH will do) refers to. If
// there is none, kind is HandleNone, err is nil and mnt is not known. Only
// EOPNOTSUPP and EOVERFLOW mean that: anything else is an error.
func HandleOf(fd int, h *Handle) (kind HandleKind, mnt uint64, err error) {
	id, errno := nameToHandle(fd, h, unix.AT_EMPTY_PATH)
	if errno == 0 {
		return HandleOpenable, uint64(id), nil
	}
	if errno != unix.EOPNOTSUPP && errno != unix.EOVERFLOW {
		return HandleNone, 0, fmt.Errorf("name_to_handle_at: %w", errno)
	}
	id, errno = nameToHandle(fd, h, unix.AT_EMPTY_PATH|atHandleFID)
	switch errno {
	case 0:
		return HandleFID, uint64(id), nil
	case unix.EOPNOTSUPP, unix.EOVERFLOW, unix.EINVAL: // EINVAL: before 6.5
		return HandleNone, 0, nil
	}
	return HandleNone, 0, fmt.Errorf("name_to_handle_at: %w", errno)
}

func nameToHandle(fd int, h *Handle, flags int) (int32, unix.Errno) {
	var empty [1]byte
	var mnt int32
	h.size = maxHandle
	_, _, errno := unix.Syscall6(unix.SYS_NAME_TO_HANDLE_AT, uintptr(fd), uintptr(unsafe.Pointer(&empty)),
		uintptr(unsafe.Pointer(h)), uintptr(unsafe.Pointer(&mnt)), uintptr(flags), 0)
	if errno == 0 && h.size > maxHandle {
		errno = unix.EOVERFLOW
	}
	return mnt, errno
}

// OpenByHandle opens the object. mountFD is any descriptor, not O_PATH, on the mount that the
// object shall be opened on. It needs CAP_DAC_READ_SEARCH; ESTALE says
// that the object is gone.
func OpenByHandle(mountFD int, obj notify.Object, flags int) (int, error) {
	if len(obj.Handle) > maxHandle || obj.Type == notify.TypeInode {
		return -1, unix.EINVAL
	}
	var h Handle
	h.size = uint32(len(obj.Handle))
	h.Type = obj.Type
	copy(h.data[:], obj.Handle)
	for {
		fd, _, errno := unix.Syscall(unix.SYS_OPEN_BY_HANDLE_AT, uintptr(mountFD), uintptr(unsafe.Pointer(&h)),
			uintptr(flags|unix.O_CLOEXEC))
		runtime.KeepAlive(&h)
		switch errno {
		case 0:
			return int(fd), nil
		case unix.EINTR:
			continue
		}
		return -1, errno
	}
}

// InodeObject is the stand-in for an object without a handle.
func InodeObject(fsid, ino, dev uint64) notify.Object {
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:8], ino)
	binary.NativeEndian.PutUint64(b[8:], dev)
	return notify.Object{FS: fsid, Type: notify.TypeInode, Handle: string(b[:])}
}

// ObjectOf returns the identity of what fd (O_PATH will do) refers to, and the id of the mount
// that fd is on, as statx(2) gives it for STATX_MNT_ID.
func ObjectOf(fd int) (obj notify.Object, mnt uint64, err error) {
	fsid, err := FSID(fd)
	if err != nil {
		return notify.Object{}, 0, err
	}
	var h Handle
	kind, mnt, err := HandleOf(fd, &h)
	if err != nil {
		return notify.Object{}, 0, err
	}
	if kind != HandleNone {
		return notify.Object{FS: fsid, Type: h.Type, Handle: string(h.Bytes())}, mnt, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return notify.Object{}, 0, fmt.Errorf("fstat: %w", err)
	}
	if mnt, _, err = MountOf(fd); err != nil {
		return notify.Object{}, 0, err
	}
	return InodeObject(fsid, st.Ino, st.Dev), mnt, nil
}

// FSID returns f_fsid of statfs(2), low word first.
func FSID(fd int) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return 0, fmt.Errorf("fstatfs: %w", err)
	}
	return FSIDOf(&st), nil
}

// FSIDOf is f_fsid, low word first.
func FSIDOf(st *unix.Statfs_t) uint64 {
	return uint64(uint32(st.Fsid.Val[0])) | uint64(uint32(st.Fsid.Val[1]))<<32
}

// MountOf returns the id of the mount that fd (O_PATH will do) is on, and the
// device number of its file system. It never waits for a FUSE server: it
// is asked about mounts that might be ours.
func MountOf(fd int) (mnt, dev uint64, err error) {
	var stx unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &stx); err != nil {
		return 0, 0, fmt.Errorf("statx: %w", err)
	}
	if stx.Mask&unix.STATX_MNT_ID == 0 {
		return 0, 0, fmt.Errorf("statx: mount ids: %w", notify.ErrNotSupported)
	}
	return stx.Mnt_id, unix.Mkdev(stx.Dev_major, stx.Dev_minor), nil
}
