//go:build unix && !linux && !darwin && !freebsd && !netbsd

package portable

import "syscall"

// born is 0: the time is not to be had.
func born(*syscall.Stat_t) int64 { return 0 }
