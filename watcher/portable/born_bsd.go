//go:build darwin || freebsd || netbsd

package portable

import "syscall"

// born is when the file was made: inode numbers are used again.
func born(st *syscall.Stat_t) int64 { return st.Birthtimespec.Nano() }
