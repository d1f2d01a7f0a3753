//go:build !linux && !darwin && !freebsd && !netbsd

package portable

import "io/fs"

// Changed returns the inode number of a file and when the inode was changed last, in nanoseconds since 1970;
// ok is false where that is not known.
func Changed(fs.FileInfo) (ino uint64, ctime int64, ok bool) { return 0, 0, false }
