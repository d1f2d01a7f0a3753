package sys

import (
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// FD owns a descriptor and counts the references to it.
type FD struct {
	raw  int
	refs atomic.Int32
}

// NewFD takes ownership of raw and returns it with one reference.
func NewFD(raw int) *FD {
	fd := &FD{raw: raw}
	fd.refs.Store(1)
	return fd
}

// Int returns the number. It is valid while the caller holds a reference.
func (fd *FD) Int() int { return fd.raw }

// Acquire takes a reference, and reports false if the descriptor was closed.
func (fd *FD) Acquire() bool {
	for {
		n := fd.refs.Load()
		if n <= 0 {
			return false
		}
		if fd.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Release gives a reference back and closes the descriptor with the last one.
// It does nothing on a nil FD.
func (fd *FD) Release() {
	if fd == nil {
		return
	}
	if fd.refs.Add(-1) == 0 {
		unix.Close(fd.raw)
	}
}

// ProcPath is the magic link through which an O_PATH descriptor's object can be
// reached by calls that want a path. It leads to the object itself, even if that
// is a symbolic link or has no name any more.
func ProcPath(fd int) string {
	var buf [32]byte
	if procIsCwd.Load() {
		return string(strconv.AppendInt(buf[:0], int64(fd), 10))
	}
	return string(strconv.AppendInt(append(buf[:0], "/proc/self/fd/"...), int64(fd), 10))
}

// procIsCwd is state of the package because the working directory is the process's.
var procIsCwd atomic.Bool

// ProcIsWorkingDirectory says that /proc cannot be reached by name any more, and that the working directory is
// /proc/self/fd, for good.
func ProcIsWorkingDirectory() { procIsCwd.Store(true) }

// ProcSelf is the path of /proc/self/NAME.
func ProcSelf(name string) string {
	if procIsCwd.Load() {
		return "../" + name
	}
	return "/proc/self/" + name
}

// Reopen opens the object that fd refers to again, with flags. The caller has
// made sure that it is a regular file or a directory: opening anything else can
// block or have effects.
func Reopen(fd, flags int) (int, error) {
	return Retry(func() (int, error) {
		return unix.Open(ProcPath(fd), flags|unix.O_CLOEXEC, 0)
	})
}

// Retry calls f until it is not interrupted by a signal.
func Retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}
