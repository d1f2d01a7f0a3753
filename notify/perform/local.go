// Package perform makes the system calls on a guest mount of which replay consists,
// in the process that it is in: the daemon's on a mount of its own, the agent's in a
// virtual machine.
//
// # Concepts
//
// A call names directories by slots, which are descriptors that Local holds. Paths are never
// walked: a name has one component, and the last one is never followed. So whoever
// sends calls reaches nothing outside of the mount, and nothing that is mounted on it.
//
// # Threads
//
// A Local belongs to one thread from its first call on, since the file system
// knows the caller by its thread id, and since that thread can have a descriptor table of its own.
package perform

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

const (
	walkFlags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	openFlags = unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	lookFlags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
)

// ErrBadCall says that a call makes no sense.
var ErrBadCall = errors.New("call makes no sense")

// Local is a notify.Performer for a mount that the calling thread can reach.
type Local struct {
	fds   []int // by slot; -1 if closed
	limit int
	enter func(dir int) (int, error)
}

// NewLocal returns a Local for the mount whose root, or any directory of it, root
// refers to; the descriptor stays the caller's. At most limit slots can be open.
func NewLocal(root, limit int) *Local {
	return &Local{fds: []int{notify.SlotNone: -1, notify.SlotRoot: root}, limit: limit}
}

// OnSubmount has enter called when a walk comes to a directory that the kernel mounts something on when it is
// entered. It returns where the walk ends instead; dir stays open. Without it, the kernel decides.
func (l *Local) OnSubmount(enter func(dir int) (int, error)) { l.enter = enter }

// SetRoot has the mount's root reached by another descriptor. What is open stays open.
func (l *Local) SetRoot(root int) { l.fds[notify.SlotRoot] = root }

// Close closes what is open, but for the root.
func (l *Local) Close() {
	for s := int(notify.SlotFree); s < len(l.fds); s++ {
		if l.fds[s] >= 0 {
			unix.Close(l.fds[s])
		}
	}
	l.fds = l.fds[:notify.SlotFree]
}

// Later implements notify.Performer: it performs c at once.
func (l *Local) Later(c *notify.Call) error { return l.Do(c) }

// Flush implements notify.Performer: nothing is ever put off.
func (l *Local) Flush() error { return nil }

// Do implements notify.Performer.
func (l *Local) Do(c *notify.Call) error {
	if c.Op == notify.CallClose {
		l.close(c.Slot)
		return nil
	}
	dir, err := l.dir(c.Dir)
	if err != nil {
		return err
	}
	if !single(c.Name) && !(c.Name == "" && (c.Op == notify.CallTouch || c.Op == notify.CallStat)) {
		return fmt.Errorf("%s of %q: %w", c.Op, c.Name, ErrBadCall)
	}
	switch c.Op {
	case notify.CallWalk:
		return l.open(dir, c, walkFlags)
	case notify.CallOpen:
		flags := int(c.Mode&unix.O_ACCMODE) | openFlags
		if c.Mode&unix.O_CREAT != 0 {
			flags |= unix.O_CREAT | unix.O_EXCL
		}
		return l.open(dir, c, flags)
	case notify.CallLook:
		fd, err := unix.Openat(dir, c.Name, lookFlags, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	case notify.CallMknod:
		return unix.Mknodat(dir, c.Name, c.Mode, int(c.Rdev))
	case notify.CallMkdir:
		return unix.Mkdirat(dir, c.Name, c.Mode)
	case notify.CallSymlink:
		return unix.Symlinkat(c.NewName, dir, c.Name)
	case notify.CallUnlink:
		return unix.Unlinkat(dir, c.Name, 0)
	case notify.CallRmdir:
		return unix.Unlinkat(dir, c.Name, unix.AT_REMOVEDIR)
	case notify.CallLink, notify.CallRename:
		return l.two(dir, c)
	case notify.CallTouch:
		return touch(dir, c)
	case notify.CallStat:
		stat(dir, c)
		return nil
	case notify.CallAsk:
		ask(dir, c)
		return nil
	}
	return fmt.Errorf("%s: %w", c.Op, ErrBadCall)
}

func (l *Local) two(dir int, c *notify.Call) error {
	newDir, err := l.dir(c.NewDir)
	if err != nil {
		return err
	}
	if !single(c.NewName) {
		return fmt.Errorf("%s to %q: %w", c.Op, c.NewName, ErrBadCall)
	}
	if c.Op == notify.CallLink {
		return unix.Linkat(dir, c.Name, newDir, c.NewName, 0)
	}
	return unix.Renameat2(dir, c.Name, newDir, c.NewName, uint(c.Mode))
}

// single reports whether name is one component of a path that leads down.
func single(name string) bool {
	return name != "" && name != "." && name != ".." && strings.IndexByte(name, '/') < 0
}

func (l *Local) dir(s notify.Slot) (int, error) {
	if int64(s) >= int64(len(l.fds)) || l.fds[s] < 0 {
		return -1, fmt.Errorf("slot %d: %w", s, ErrBadCall)
	}
	return l.fds[s], nil
}

func (l *Local) open(dir int, c *notify.Call, flags int) error {
	if c.Slot != notify.SlotNone && (c.Slot < notify.SlotFree || int64(c.Slot) >= int64(l.limit) ||
		int64(c.Slot) < int64(len(l.fds)) && l.fds[c.Slot] >= 0) {
		return fmt.Errorf("open as slot %d: %w", c.Slot, ErrBadCall)
	}
	var fd int
	var err error
	if c.Op == notify.CallWalk && l.enter != nil {
		fd, err = l.walk(dir, c.Name)
	} else {
		fd, err = unix.Openat(dir, c.Name, flags, 0o600) // the mode is for O_CREAT
	}
	if err != nil {
		return err
	}
	if c.Slot == notify.SlotNone {
		unix.Close(fd)
		return nil
	}
	for int64(len(l.fds)) <= int64(c.Slot) {
		l.fds = append(l.fds, -1)
	}
	l.fds[c.Slot] = fd
	return nil
}

// walk opens a directory without entering a submount.
func (l *Local) walk(dir int, name string) (int, error) {
	// O_DIRECTORY would have it mounted.
	fd, err := unix.Openat(dir, name, lookFlags, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	switch {
	case err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR:
		err = unix.ENOTDIR
	case err == nil && st.Attributes&unix.STATX_ATTR_AUTOMOUNT == 0:
		return fd, nil
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	defer unix.Close(fd)
	return l.enter(fd)
}

func (l *Local) close(s notify.Slot) {
	if s >= notify.SlotFree && int64(s) < int64(len(l.fds)) && l.fds[s] >= 0 {
		unix.Close(l.fds[s])
		l.fds[s] = -1
	}
}

func touch(dir int, c *notify.Call) error {
	omit, now := unix.Timespec{Nsec: unix.UTIME_OMIT}, unix.Timespec{Nsec: unix.UTIME_NOW}
	var ts [2]unix.Timespec
	switch c.Mode {
	case notify.TouchMtime:
		ts = [2]unix.Timespec{omit, now}
	case notify.TouchAtime:
		ts = [2]unix.Timespec{now, omit}
	case notify.TouchBoth:
		ts = [2]unix.Timespec{{Sec: 1}, {Sec: 1}}
	default:
		return fmt.Errorf("touch of times %#x: %w", c.Mode, ErrBadCall)
	}
	return unix.UtimesNanoAt(dir, c.Name, ts[:], at(c))
}

func stat(dir int, c *notify.Call) {
	var st unix.Statx_t
	// What is not there has no attributes to be fresh.
	_ = unix.Statx(dir, c.Name, at(c)|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
}

// ask makes the kernel look a name up although it has it cached: it does so before it makes
// something (LOOKUP_EXCL). The file system never lets this directory be made.
func ask(dir int, c *notify.Call) {
	if unix.Mkdirat(dir, c.Name, 0) == nil {
		_ = unix.Unlinkat(dir, c.Name, unix.AT_REMOVEDIR)
	}
}

// at returns the AT_ flags of a call about Dir/Name, or about Dir itself.
func at(c *notify.Call) int {
	if c.Name == "" {
		return unix.AT_EMPTY_PATH
	}
	return unix.AT_SYMLINK_NOFOLLOW
}
