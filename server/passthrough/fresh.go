package passthrough

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// timeouts are how long the guest's kernel may keep what it is told, in nanoseconds.
type timeouts struct{ entry, attr, negative atomic.Int64 }

// SetTimeouts changes how long the guest's kernel may keep names, attributes, and the absence of
// a name that it is told of from now on.
func (fs *FS) SetTimeouts(entry, attr, negative time.Duration) {
	fs.keep.entry.Store(int64(entry))
	fs.keep.attr.Store(int64(attr))
	fs.keep.negative.Store(int64(negative))
}

func (fs *FS) entryTimeout() time.Duration    { return time.Duration(fs.keep.entry.Load()) }
func (fs *FS) attrTimeout() time.Duration     { return time.Duration(fs.keep.attr.Load()) }
func (fs *FS) negativeTimeout() time.Duration { return time.Duration(fs.keep.negative.Load()) }

// fstat is fstat(2), past the attribute cache of a foreign mount.
func (fs *FS) fstat(fd int, st *unix.Stat_t) error {
	if !fs.opts.Foreign {
		return unix.Fstat(fd, st)
	}
	return FreshStat(fd, "", st)
}

// FreshStat is fstatat(2) of an entry, or with no name of dir itself, that asks a file server anew where a
// file system has one (AT_STATX_FORCE_SYNC). A symlink is not followed.
func FreshStat(dir int, name string, st *unix.Stat_t) error {
	flags := unix.AT_STATX_FORCE_SYNC | unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var x unix.Statx_t
	if err := unix.Statx(dir, name, flags, unix.STATX_BASIC_STATS, &x); err != nil {
		return err
	}
	*st = unix.Stat_t{
		Dev: unix.Mkdev(x.Dev_major, x.Dev_minor), Rdev: unix.Mkdev(x.Rdev_major, x.Rdev_minor),
		Ino: x.Ino, Mode: uint32(x.Mode), Uid: x.Uid, Gid: x.Gid, Size: int64(x.Size), Blocks: int64(x.Blocks),
		Atim: timespecOf(x.Atime), Mtim: timespecOf(x.Mtime), Ctim: timespecOf(x.Ctime),
	}
	// Their types differ between architectures.
	setWide(&st.Nlink, x.Nlink)
	setWide(&st.Blksize, x.Blksize)
	return nil
}

func setWide[T ~int32 | ~int64 | ~uint32 | ~uint64](dst *T, v uint32) { *dst = T(v) }

func timespecOf(t unix.StatxTimestamp) unix.Timespec {
	return unix.NsecToTimespec(t.Sec*int64(time.Second) + int64(t.Nsec))
}
