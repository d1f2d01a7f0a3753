//go:build linux

package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const mountType = "fuse.heraldfs"

// errNotMounted is for a path on which there is nothing.
var errNotMounted = errors.New("nothing is mounted here")

// findMount returns the heraldfs mount whose mount point is path.
func findMount(path string) (*mountinfo.Info, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, errors.Unwrap(err))
	}
	if abs != "/" {
		abs = filepath.Join(dir, filepath.Base(abs))
	}
	found, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(abs))
	if err == nil && len(found) == 0 {
		// Not before: what is mounted there may not answer.
		if real, rerr := filepath.EvalSymlinks(abs); rerr == nil && real != abs {
			abs = real
			found, err = mountinfo.GetMounts(mountinfo.SingleEntryFilter(abs))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	if len(found) == 0 {
		if err := unix.Access(abs, unix.F_OK); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return nil, fmt.Errorf("%s: %w; `findmnt -t %s` lists the heraldfs mounts", path, errNotMounted, mountType)
	}
	// Of several on one point the last is the visible one.
	m := found[len(found)-1]
	if m.FSType != mountType {
		return nil, fmt.Errorf("%s: a %s file system is mounted here, not heraldfs", path, m.FSType)
	}
	return m, nil
}

// mountTypeOf returns the type of what is mounted on path, "" if that is nothing.
func mountTypeOf(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	found, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(abs))
	if err != nil || len(found) == 0 {
		return ""
	}
	return found[len(found)-1].FSType
}
