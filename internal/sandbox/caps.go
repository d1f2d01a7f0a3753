package sandbox

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// capabilities are what a file server keeps: to make files for others and to change them, and to
// open files by handle. CAP_SYS_ADMIN is not among them: a guest's root cannot set
// trusted.* attributes, and no file system can be marked for fanotify any more.
func (o *Options) capabilities() []uintptr {
	keep := []uintptr{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID,
		unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_MKNOD, unix.CAP_SETFCAP}
	if !o.NoHandles {
		keep = append(keep, unix.CAP_DAC_READ_SEARCH)
	}
	return keep
}

type capData [2]unix.CapUserData

func (d *capData) has(c uintptr) bool { return d[c/32].Permitted&(1<<(c%32)) != 0 }

func currentCaps() (d capData, err error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&hdr, &d[0]); err != nil {
		return d, fmt.Errorf("capget: %w", err)
	}
	return d, nil
}

func hasCapability(c uintptr) (bool, error) {
	d, err := currentCaps()
	return d.has(c), err
}

// dropCaps leaves the capabilities in keep, as far as they are there, on all threads: permitted,
// effective and bounding set. The others can be had again by nobody.
func dropCaps(keep []uintptr) error {
	old, err := currentCaps()
	if err != nil {
		return err
	}
	wanted := map[uintptr]bool{}
	var fresh capData
	for _, c := range keep {
		if wanted[c] = true; old.has(c) {
			fresh[c/32].Permitted |= 1 << (c % 32)
		}
	}
	fresh[0].Effective, fresh[1].Effective = fresh[0].Permitted, fresh[1].Permitted
	if err := onAllThreads("clear ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil {
		return err
	}
	if old.has(unix.CAP_SETPCAP) {
		for c := uintptr(0); c < 64; c++ {
			set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
			if err != nil {
				break // the kernel's last one was before
			}
			if set == 0 || wanted[c] {
				continue
			}
			if err := onAllThreads("drop from the bounding set", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); err != nil {
				return err
			}
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	err = onAllThreads("capset", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&fresh)), 0)
	runtime.KeepAlive(&hdr)
	runtime.KeepAlive(&fresh)
	return err
}
