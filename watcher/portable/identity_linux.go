package portable

import (
	"io/fs"
	"syscall"

	"golang.org/x/sys/unix"
)

// identify returns what tells the file of fi, which is at path, from all others. Inode numbers are used again at
// once, so the time of birth belongs to it. gone says that it has left since.
func identify(path string, fi fs.FileInfo) (id identity, gone bool) {
	var sx unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_STATX_DONT_SYNC | unix.AT_NO_AUTOMOUNT
	err := unix.Statx(unix.AT_FDCWD, path, flags, unix.STATX_INO|unix.STATX_BTIME, &sx)
	switch err {
	case unix.ENOENT, unix.ENOTDIR:
		return identity{}, true // it has left since fi
	case nil:
		id = identity{volume: unix.Mkdev(sx.Dev_major, sx.Dev_minor), file: sx.Ino}
		if sx.Mask&unix.STATX_BTIME != 0 {
			id.born = sx.Btime.Sec*1e9 + int64(sx.Btime.Nsec)
		}
		return id, false
	}
	st, ok := fi.Sys().(*syscall.Stat_t) // a kernel without statx
	if !ok {
		return identity{}, false
	}
	return identity{volume: st.Dev, file: st.Ino}, false
}
