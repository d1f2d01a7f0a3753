package notify

import (
	"errors"
	"fmt"
)

// Slot names a descriptor that a Performer holds. Whoever has calls performed chooses
// the numbers, small ones first, and opens none twice.
type Slot uint32

const (
	// SlotNone stands for no descriptor: what a call opens is closed at once.
	SlotNone Slot = iota
	// SlotRoot is the root of the guest mount. It is always open.
	SlotRoot
	// SlotFree is the first one that CallWalk and CallOpen may open.
	SlotFree
)

// CallOp says which system call a Call is.
type CallOp uint8

// The calls. No call follows a symbolic link in the last component of a name, and no
// name has more than one component.
const (
	// CallWalk opens the directory Dir/Name as Slot, for use as a Dir only.
	CallWalk CallOp = iota + 1
	// CallClose closes Slot. One that is not open is no error.
	CallClose
	// CallMknod makes Dir/Name; Mode has its type and permissions, Rdev its device.
	CallMknod
	// CallMkdir makes the directory Dir/Name with the permissions Mode.
	CallMkdir
	// CallSymlink makes the symbolic link Dir/Name to NewName.
	CallSymlink
	// CallLink gives Dir/Name another name, NewDir/NewName.
	CallLink
	// CallUnlink removes Dir/Name, which is no directory.
	CallUnlink
	// CallRmdir removes the directory Dir/Name.
	CallRmdir
	// CallRename renames Dir/Name to NewDir/NewName; Mode has the RENAME_ flags.
	CallRename
	// CallTouch sets the times of Dir/Name that Mode names, or of Dir itself if Name is empty.
	CallTouch
	// CallOpen opens Dir/Name as Slot; Mode is O_RDONLY or O_WRONLY, with O_CREAT to make the file, which must
	// not be there then.
	CallOpen
	// CallLook looks Dir/Name up, and uses what the kernel has cached.
	CallLook
	// CallStat asks the file system for the attributes of Dir/Name, or of Dir itself if Name is empty,
	// whatever the kernel has cached of them. It never fails.
	CallStat
	// CallAsk asks the file system what Dir/Name is, whatever the kernel has cached of it, by
	// an attempt to make a directory with no permissions there. It never fails.
	CallAsk
	callEnd
)

var callNames = [...]string{"", "walk", "close", "mknod", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "touch", "open", "look", "stat", "ask"}

// Valid reports whether o is one of the calls.
func (o CallOp) Valid() bool { return o > 0 && o < callEnd }

func (o CallOp) String() string {
	if !o.Valid() {
		return fmt.Sprintf("call %d", uint8(o))
	}
	return callNames[o]
}

// What CallTouch sets, as its Mode: to the present time if it is one of them; both to a time long ago.
const (
	TouchMtime uint32 = 1
	TouchAtime uint32 = 2
	TouchBoth  uint32 = TouchMtime | TouchAtime
)

// Call is one system call on a guest mount, in a form that can be sent to where that mount is.
type Call struct {
	Op            CallOp
	Dir, NewDir   Slot
	Name, NewName string
	Slot          Slot
	Mode          uint32
	Rdev          uint32
}

// Performer performs calls on a guest mount. Only one goroutine uses it.
type Performer interface {
	// Do performs c, after the calls that were put off. Its error is c's own, wrapping a
	// unix.Errno; or an EarlierError, and c was not performed; or ErrDetached.
	Do(c *Call) error
	// Later performs c at once, or puts it off until the next Do to save a round trip. It
	// keeps no pointer to c.
	Later(c *Call) error
	// Flush performs what was put off. Its error is that of one of those calls, an EarlierError, or ErrDetached.
	Flush() error
}

// ErrDetached is returned by a Performer that can perform nothing any more: who did it is gone.
var ErrDetached = errors.New("nobody is there to perform calls on the mount")

// EarlierError is the error of a call that was put off. Those behind it were not performed.
type EarlierError struct {
	Op  CallOp
	Err error
}

func (e *EarlierError) Error() string { return "before it, " + e.Op.String() + ": " + e.Err.Error() }

// Unwrap returns the call's own error.
func (e *EarlierError) Unwrap() error { return e.Err }
