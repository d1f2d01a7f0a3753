package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Capability is something that a machine may lack.
type Capability int

// The capabilities.
const (
	// Root is effective uid 0 with CAP_SYS_ADMIN that works: mounting is allowed.
	Root Capability = iota + 1
	// FUSE is a /dev/fuse that we can open.
	FUSE
	// Fanotify is fanotify with directory handles, names and target handles, and a
	// file system mark for FAN_RENAME on the temporary directory's file system.
	Fanotify
	// Loop is loop devices.
	Loop
	// OverlayFS is the overlay file system.
	OverlayFS
	// Fusermount is fusermount3, and a /dev/fuse open to everybody.
	Fusermount
	// KVM is a /dev/kvm that we can open.
	KVM
	// IOURing is FUSE over io_uring that we may switch on.
	IOURing
)

var capabilities = [...]struct {
	name  string
	probe func() error
}{
	Root:       {"root", probeRoot},
	FUSE:       {"FUSE", func() error { return probeDevice("/dev/fuse") }},
	Fanotify:   {"fanotify", probeFanotify},
	Loop:       {"loop devices", func() error { return probeDevice("/dev/loop-control") }},
	OverlayFS:  {"overlayfs", probeOverlay},
	Fusermount: {"fusermount3", probeFusermount},
	KVM:        {"KVM", func() error { return probeDevice("/dev/kvm") }},
	IOURing:    {"FUSE over io_uring", func() error { return unix.Access(ioURingSwitch, unix.W_OK) }},
}

func (c Capability) String() string {
	if int(c) > 0 && int(c) < len(capabilities) {
		return capabilities[c].name
	}
	return fmt.Sprintf("capability(%d)", int(c))
}

// Has tries the capability and returns what is in the way of it.
func Has(c Capability) error {
	if int(c) <= 0 || int(c) >= len(capabilities) {
		return errors.New("no such capability")
	}
	return capabilities[c].probe()
}

// Need ends the test unless the machine has all of caps: as skipped, or with
// CI=true in the environment as failed.
func Need(t testing.TB, caps ...Capability) {
	t.Helper()
	for _, c := range caps {
		if err := Has(c); err != nil {
			Lack(t, fmt.Sprintf("needs %v: %v", c, err))
		}
	}
}

// NeedTool is Need for programs; it returns the path of the first.
func NeedTool(t testing.TB, names ...string) string {
	t.Helper()
	first := ""
	for i, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			Lack(t, fmt.Sprintf("needs the program %s: %v", name, err))
		}
		if i == 0 {
			first = path
		}
	}
	return first
}

// Lack ends the test for want of something that Need does not know: as skipped, or with
// CI=true in the environment as failed.
func Lack(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s (CI=true: nothing is skipped)", why)
	}
	t.Skip(why)
}

func probeRoot() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("effective uid is %d", uid)
	}
	// Mounting needs CAP_SYS_ADMIN over our mount namespace; uid 0 of a container
	// often has not. fsopen asks for the same and mounts nothing.
	fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	return unix.Close(fd)
}

func probeDevice(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	return unix.Close(fd)
}

func probeFanotify() error {
	fd, err := unix.FanotifyInit(unix.FAN_CLOEXEC|unix.FAN_CLASS_NOTIF|unix.FAN_REPORT_DFID_NAME_TARGET, unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("fanotify_init: %w", err)
	}
	defer unix.Close(fd)
	const events = unix.FAN_CREATE | unix.FAN_RENAME | unix.FAN_ONDIR
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, events, unix.AT_FDCWD, os.TempDir()); err != nil {
		return fmt.Errorf("fanotify_mark of the file system of %s: %w", os.TempDir(), err)
	}
	return nil
}

func probeOverlay() error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	return unix.Close(fd)
}

func probeFusermount() error {
	if _, err := exec.LookPath("fusermount3"); err != nil {
		return err
	}
	info, err := os.Stat("/dev/fuse")
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o006 != 0o006 {
		return fmt.Errorf("/dev/fuse has mode %#o", info.Mode().Perm())
	}
	return nil
}
