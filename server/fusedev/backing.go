package fusedev

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// The ioctls of include/uapi/linux/fuse.h for passthrough I/O (Linux 6.9):
//
//	#define FUSE_DEV_IOC_MAGIC		229
//	#define FUSE_DEV_IOC_BACKING_OPEN	_IOW(FUSE_DEV_IOC_MAGIC, 1, struct fuse_backing_map)
//	#define FUSE_DEV_IOC_BACKING_CLOSE	_IOW(FUSE_DEV_IOC_MAGIC, 2, uint32_t)
const (
	iocBackingOpen  = 1<<30 | uintptr(unsafe.Sizeof(backingMap{}))<<16 | 229<<8 | 1
	iocBackingClose = 1<<30 | 4<<16 | 229<<8 | 2
)

// backingMap is
//
//	struct fuse_backing_map {
//		int32_t		fd;
//		uint32_t	flags;
//		uint64_t	padding;
//	};
type backingMap struct {
	fd      int32
	flags   uint32
	padding uint64
}

// BackingOpen has the kernel hold the file that fd refers to (O_PATH will do; it stays the
// caller's), so that opens can be answered with FOPEN_PASSTHROUGH and the id that is returned. It
// wraps notify.ErrNotSupported if this connection cannot do so for any file (it needs CAP_SYS_ADMIN and
// CAP_PASSTHROUGH), and unix.ELOOP if the file is on a file system that is stacked itself.
func (c *Conn) BackingOpen(fd int) (id int32, err error) {
	m := backingMap{fd: int32(fd)}
	c.fdMu.RLock()
	defer c.fdMu.RUnlock()
	if c.fd < 0 {
		return 0, notify.ErrClosed
	}
	r, _, errno := syscall.Syscall(unix.SYS_IOCTL, uintptr(c.fd), iocBackingOpen, uintptr(unsafe.Pointer(&m)))
	if errno == 0 {
		return int32(r), nil
	}
	err = fmt.Errorf("FUSE_DEV_IOC_BACKING_OPEN: %w", errno)
	for _, e := range []error{unix.EPERM, unix.ENOTTY, unix.EINVAL, unix.EOPNOTSUPP} {
		if errors.Is(errno, e) {
			err = fmt.Errorf("%w: %w", err, notify.ErrNotSupported)
		}
	}
	return 0, err
}

// BackingClose ends the use of id for further opens. Those that have it keep the file.
func (c *Conn) BackingClose(id int32) error {
	c.fdMu.RLock()
	defer c.fdMu.RUnlock()
	if c.fd < 0 {
		return notify.ErrClosed
	}
	if _, _, errno := syscall.Syscall(unix.SYS_IOCTL, uintptr(c.fd), iocBackingClose, uintptr(unsafe.Pointer(&id))); errno != 0 {
		return fmt.Errorf("FUSE_DEV_IOC_BACKING_CLOSE: %w", errno)
	}
	return nil
}
