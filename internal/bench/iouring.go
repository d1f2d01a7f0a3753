package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ioURingSwitch is the parameter of the kernel's fuse module that has it offer FUSE over io_uring.
const ioURingSwitch = "/sys/module/fuse/parameters/enable_uring"

// offerIOURing has the kernel offer FUSE over io_uring until the end of the run. Where that cannot be, the run goes on without.
func (b *bench) offerIOURing(path string) error {
	// The module is loaded, and has its parameters, once somebody has opened the device.
	if f, err := os.Open("/dev/fuse"); err == nil {
		f.Close()
	}
	before, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		b.say("this kernel has no FUSE over io_uring: requests are read from /dev/fuse")
		return nil
	case err != nil:
		return err
	case string(bytes.TrimSpace(before)) == "Y":
		b.say("FUSE over io_uring is switched on already")
		return nil
	}
	if err := os.WriteFile(path, []byte("Y"), 0); err != nil {
		b.say("FUSE over io_uring cannot be switched on: requests are read from /dev/fuse: %v", err)
		return nil
	}
	b.later(func() error {
		if err := os.WriteFile(path, before, 0); err != nil {
			return fmt.Errorf("FUSE over io_uring stays switched on: %w", err)
		}
		b.say("FUSE over io_uring: %s is %s again", filepath.Base(path), bytes.TrimSpace(before))
		return nil
	})
	b.say("FUSE over io_uring is switched on for the run")
	return nil
}

// transports tells how requests came to our mounts, each of which is in a list once, by its flags.
type transports struct{ ring, device []string }

func (t *transports) add(name string, ring bool) {
	list := &t.device
	if ring {
		list = &t.ring
	}
	if !slices.Contains(*list, name) {
		*list = append(*list, name)
	}
}

// String is empty if there was no mount.
func (t *transports) String() string {
	var said []string
	if len(t.ring) > 0 {
		said = append(said, "by FUSE over io_uring to "+strings.Join(t.ring, ", "))
	}
	if len(t.device) > 0 {
		said = append(said, "by reads of /dev/fuse to "+strings.Join(t.device, ", "))
	}
	if said == nil {
		return ""
	}
	return "Requests came " + strings.Join(said, "; ") + "."
}

// overIOURing reports whether a daemon of ours takes requests so: it has rings then. A question to the mount would be a request.
func overIOURing(pid int) (bool, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	list, err := os.ReadDir(dir)
	for _, e := range list {
		// A descriptor may be closed meanwhile.
		if to, _ := os.Readlink(filepath.Join(dir, e.Name())); to == "anon_inode:[io_uring]" {
			return true, nil
		}
	}
	return false, err
}
