package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify/replay"
	"github.com/heraldfs/heraldfs/server/fusedev"
)

// maxStatus is the largest value of an extended attribute.
const maxStatus = 64 << 10

func mountStatus(path string) ([]byte, error) {
	buf := make([]byte, maxStatus)
	n, err := unix.Getxattr(path, replay.StatusAttr, buf)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Getxattr(path, replay.StatusAttr, buf)
	}
	switch {
	case err == nil:
		return buf[:n], nil
	case fusedev.Dead(err):
		return nil, deadMount("status", path)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("status %s: only root and the user that the mount's daemon runs as may ask: %w", path, err)
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
		if _, merr := findMount(path); merr != nil {
			return nil, fmt.Errorf("status: %w", merr)
		}
		return nil, fmt.Errorf("status %s: the mount's daemon is of a version that does not tell", path)
	}
	return nil, fmt.Errorf("status %s: %w", path, err)
}
