package sandbox

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// minABI is the first with LANDLOCK_ACCESS_FS_REFER: without it no file could be moved to another directory.
const minABI = 2

// LANDLOCK_CREATE_RULESET_VERSION and LANDLOCK_RULE_PATH_BENEATH.
const (
	createRulesetVersion = 1
	rulePathBeneath      = 1
)

// rulesetAttr is, from ABI 4 on,
//
//	struct landlock_ruleset_attr { __u64 handled_access_fs; __u64 handled_access_net; };
type rulesetAttr struct{ fs, net uint64 }

// pathBeneath is
//
//	struct landlock_path_beneath_attr { __u64 allowed_access; __s32 parent_fd; } __attribute__((packed));
type pathBeneath struct {
	access uint64
	parent int32
}

// landlockABI is 0 where there is no Landlock, or it is off.
func landlockABI() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, createRulesetVersion)
	if errno != 0 {
		return 0
	}
	return int(v)
}

func errNoLandlock(abi int) error {
	if abi == 0 {
		return fmt.Errorf("the kernel has no Landlock, or it is off: %w", notify.ErrNotSupported)
	}
	return fmt.Errorf("the kernel's Landlock (ABI %d) forbids moving files between directories: %w", abi, notify.ErrNotSupported)
}

// handledAccess is all that this kernel can forbid, except what is useful to a file server nowhere.
func handledAccess(abi int) rulesetAttr {
	const firstABI = unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1
	a := rulesetAttr{fs: firstABI}
	if abi >= 2 {
		a.fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		a.fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 4 {
		a.net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if abi >= 5 {
		a.fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	return a
}

// restrict puts all threads under Landlock: below dir everything but running programs is allowed, the files in
// readable can be read, nothing else can be opened. TCP sockets that are open already go on.
func restrict(dir string, readable []string) error {
	abi := landlockABI()
	if abi < minABI {
		return errNoLandlock(abi)
	}
	attr := handledAccess(abi)
	size := unsafe.Sizeof(attr)
	if abi < 4 {
		size = 8
	}
	raw, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return fmt.Errorf("landlock_create_ruleset: %w", errno)
	}
	rules := sys.NewFD(int(raw))
	defer rules.Release()
	if err := allow(rules, dir, attr.fs&^(unix.LANDLOCK_ACCESS_FS_EXECUTE|unix.LANDLOCK_ACCESS_FS_IOCTL_DEV)); err != nil {
		return err
	}
	for _, path := range readable {
		if err := allow(rules, path, unix.LANDLOCK_ACCESS_FS_READ_FILE); err != nil {
			return err
		}
	}
	return onAllThreads("landlock_restrict_self", unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(rules.Int()), 0, 0)
}

// allow grants access to path and everything below it.
func allow(rules *sys.FD, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("landlock: open %s: %w", path, err)
	}
	defer unix.Close(fd)
	rule := pathBeneath{access: access, parent: int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(rules.Int()), rulePathBeneath, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	runtime.KeepAlive(&rule)
	if errno != 0 {
		return fmt.Errorf("landlock_add_rule %s: %w", path, errno)
	}
	return nil
}
