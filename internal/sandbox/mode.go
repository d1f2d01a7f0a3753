package sandbox

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Mode is how the process is confined.
type Mode string

// The modes. Auto is for Resolve.
const (
	Auto      Mode = ""
	None      Mode = "none"
	Landlock  Mode = "landlock"
	Chroot    Mode = "chroot"
	Namespace Mode = "namespace"
)

// ErrCgo says that this program has C code in it, so that its threads cannot be confined.
var ErrCgo = errors.New("this heraldfs was built with cgo and cannot confine its threads: build it with CGO_ENABLED=0")

// Options say how to confine the process.
type Options struct {
	Mode Mode
	// Dir is absolute and free of symlinks.
	Dir string
	// NoHandles says that files will not be opened by handle.
	NoHandles bool
	Logger    *slog.Logger
}

// Parse reads a mode as a user writes it.
func Parse(s string) (Mode, error) {
	switch m := Mode(s); m {
	case Auto, None, Landlock, Chroot, Namespace:
		return m, nil
	}
	return None, fmt.Errorf("%q: give namespace, chroot, landlock or none", s)
}

// Resolve returns the mode to use for m. Auto is the strictest that works without
// showing the files differently; why says what is in the way of a stricter one. Another m
// comes back, or an error if it cannot work.
func Resolve(m Mode) (mode Mode, why string, err error) {
	if m == None {
		return None, "", nil
	}
	if err := threads(); err != nil {
		if m != Auto {
			return None, "", err
		}
		return None, err.Error(), nil
	}
	if m == Landlock {
		if abi := landlockABI(); abi < minABI {
			return None, "", errNoLandlock(abi)
		}
	}
	if m == Chroot {
		if has, err := hasCapability(unix.CAP_SYS_CHROOT); err != nil || !has {
			return None, "", errors.Join(err, errors.New("chroot needs CAP_SYS_CHROOT"))
		}
	}
	if m != Auto {
		return m, "", nil
	}
	admin, err := hasCapability(unix.CAP_SYS_ADMIN)
	if err != nil {
		return None, "", err
	}
	if admin && os.Geteuid() == 0 {
		return Namespace, "", nil
	}
	why = "namespaces need root and CAP_SYS_ADMIN, or a user namespace, in which all foreign owners look alike"
	if abi := landlockABI(); abi < minABI {
		return None, why + "; " + errNoLandlock(abi).Error(), nil
	}
	return Landlock, why, nil
}

// threads reports whether all threads can be changed at once.
func threads() error {
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0); errno != 0 {
		return ErrCgo
	}
	return nil
}

// onAllThreads makes one system call on every thread, with one result.
func onAllThreads(what string, trap, a1, a2, a3 uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0)
	switch {
	case errno == unix.ENOTSUP && threads() != nil:
		return ErrCgo
	case errno != 0:
		return fmt.Errorf("%s: %w", what, errno)
	}
	return nil
}
