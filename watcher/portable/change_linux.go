package portable

import (
	"io/fs"
	"syscall"
)

// Changed returns the inode number of a file and when the inode was changed last, in nanoseconds since 1970;
// ok is false where that is not known.
func Changed(fi fs.FileInfo) (ino uint64, ctime int64, ok bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return st.Ino, st.Ctim.Nano(), true
}
