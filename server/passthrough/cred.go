package passthrough

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// identity is who we are.
type identity struct {
	root     bool
	uid, gid uint32
	groups   []uint32
}

func ownIdentity() (identity, error) {
	id := identity{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
	id.root = id.uid == 0
	groups, err := os.Getgroups()
	if err != nil {
		return id, fmt.Errorf("getgroups: %w", err)
	}
	for _, g := range groups {
		id.groups = append(id.groups, uint32(g))
	}
	return id, nil
}

// asCaller runs op with the caller's fsuid and fsgid, if we may change ours.
// Supplementary groups cost a read of /proc, so they are taken only if
// needGroups says that the result depends on them, or if op is denied without.
func (fs *FS) asCaller(h *fuse.InHeader, needGroups bool, op func() error) error {
	if !fs.ids.root || (h.Uid == fs.ids.uid && h.Gid == fs.ids.gid) {
		return op()
	}
	if fs.opts.ForeignPids {
		return fs.withIDs(h.Uid, h.Gid, nil, true, op)
	}
	var groups []uint32
	if needGroups {
		groups = callerGroups(h.Pid)
	}
	err := fs.withIDs(h.Uid, h.Gid, groups, false, op)
	if err == unix.EACCES && !needGroups {
		if groups = callerGroups(h.Pid); len(groups) > 0 {
			err = fs.withIDs(h.Uid, h.Gid, groups, false, op)
		}
	}
	return err
}

// withIDs runs op on this thread under other ids. setfsuid takes the file-related
// capabilities away with the last root id, and gives them back. If the
// thread cannot be brought back it stays locked to this goroutine: it has less rights
// than it should, never more, and dies with the goroutine.
func (fs *FS) withIDs(uid, gid uint32, groups []uint32, override bool, op func() error) (err error) {
	runtime.LockOSThread()
	restored := false
	defer func() {
		if restored {
			runtime.UnlockOSThread()
		}
	}()
	changeGroups := len(groups) > 0 || len(fs.ids.groups) > 0
	if changeGroups {
		if errno := setGroups(groups); errno != 0 {
			restored = true
			return errno
		}
	}
	setFSID(unix.SYS_SETFSGID, gid)
	setFSID(unix.SYS_SETFSUID, uid)
	defer func() {
		setFSID(unix.SYS_SETFSUID, fs.ids.uid)
		setFSID(unix.SYS_SETFSGID, fs.ids.gid)
		restored = fsID(unix.SYS_SETFSUID) == fs.ids.uid && fsID(unix.SYS_SETFSGID) == fs.ids.gid
		if changeGroups {
			restored = setGroups(fs.ids.groups) == 0 && restored
		}
		if !restored {
			fs.log.Error("a thread could not get its ids back")
		}
	}()
	if fsID(unix.SYS_SETFSUID) != uid || fsID(unix.SYS_SETFSGID) != gid {
		return unix.EPERM
	}
	if override {
		if err := setCapability(unix.CAP_DAC_OVERRIDE, true); err != nil {
			return err
		}
	}
	return op()
}

func setFSID(call uintptr, id uint32) { unix.RawSyscall(call, uintptr(id), 0, 0) }

// fsID reads an id back: these calls return the previous one, and refuse -1.
func fsID(call uintptr) uint32 {
	id, _, _ := unix.RawSyscall(call, ^uintptr(0), 0, 0)
	return uint32(id)
}

// setGroups changes this thread's groups; the C library's call changes every thread's.
func setGroups(groups []uint32) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0)
	runtime.KeepAlive(groups)
	return errno
}

// callerGroups returns the supplementary groups of a thread that waits for us, or
// none if they cannot be known.
func callerGroups(tid uint32) []uint32 {
	if tid == 0 {
		return nil
	}
	data, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/status")
	if err != nil {
		return nil
	}
	_, data, found := bytes.Cut(data, []byte("\nGroups:"))
	if !found {
		return nil
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	var groups []uint32
	for _, word := range bytes.Fields(line) {
		g, err := strconv.ParseUint(string(word), 10, 32)
		if err != nil {
			return nil
		}
		groups = append(groups, uint32(g))
	}
	return groups
}

// withoutFsetid runs op on a thread that has the caller's groups and not CAP_FSETID, so that the kernel
// clears set-id bits as it does for the caller: whether it clears S_ISGID depends on the groups.
// The uid stays: the caller's permission has been checked.
func (fs *FS) withoutFsetid(h *fuse.InHeader, op func() error) error {
	if !fs.ids.root {
		return op()
	}
	var groups []uint32
	if !fs.opts.ForeignPids {
		groups = callerGroups(h.Pid)
	}
	return fs.withIDs(fs.ids.uid, h.Gid, groups, false, func() error {
		if err := setCapability(unix.CAP_FSETID, false); err != nil {
			return err
		}
		err := op()
		if e := setCapability(unix.CAP_FSETID, true); e != nil {
			fs.log.Error("a thread could not get a capability back", "error", e)
		}
		return err
	})
}

// setCapability changes this thread's effective set. Raising what is not permitted is no error.
func setCapability(capability uint, on bool) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	word, bit := capability/32, uint32(1)<<(capability%32)
	if on {
		data[word].Effective |= bit & data[word].Permitted
	} else {
		data[word].Effective &^= bit
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}
