//go:build linux

package tree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

var (
	// errGone says that a directory does not exist any more.
	errGone = errors.New("directory is gone")
	// errTop says that nothing is above a directory.
	errTop = errors.New("top of the name space")
)

// openFlags open a directory such that no watcher hears of it.
const openFlags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// host asks the file system where directories are. The engine sees it through an
// interface, so that a model can stand in for it.
type host interface {
	// where returns the parent and the name that dir has now; errGone, errTop.
	where(dir notify.Object) (parent notify.Object, name string, err error)
	// openObject returns an O_PATH descriptor of dir.
	openObject(dir notify.Object) (int, error)
	// openPath returns an O_PATH descriptor of a directory below a root. No symlink is
	// followed. "" is the root.
	openPath(root int, path string) (int, error)
	// mountsChanged forgets what was known of mounts.
	mountsChanged()
}

// rootDir is a root, or the directory that a root which is a file lies in.
type rootDir struct {
	obj  notify.Object
	fd   int    // readable where we may read it
	path string // absolute, without symlinks
	file string // of a root that is a file: its name
}

// disk is the host that is really there.
type disk struct {
	roots  []rootDir
	mounts map[uint64]string // a mount point by f_fsid, "" where there is none below a root
}

// where costs about 5 microseconds for a directory that is in the dentry cache.
func (d *disk) where(dir notify.Object) (notify.Object, string, error) {
	fd, err := d.openObject(dir)
	if err != nil {
		return notify.Object{}, "", err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return notify.Object{}, "", fmt.Errorf("fstat: %w", err)
	}
	if st.Nlink == 0 {
		return notify.Object{}, "", errGone
	}
	up, err := unix.Openat(fd, "..", openFlags, 0)
	if err != nil {
		return notify.Object{}, "", fmt.Errorf("open parent: %w", err)
	}
	defer unix.Close(up)
	parent, _, err := sys.ObjectOf(up)
	if err != nil {
		return notify.Object{}, "", err
	}
	if parent == dir {
		return notify.Object{}, "", errTop
	}
	path, err := os.Readlink(sys.ProcPath(fd))
	if err == nil && strings.HasPrefix(path, "/") && path != "/" {
		return parent, filepath.Base(path), nil
	}
	// A path longer than a page cannot be read from the link.
	name, err := nameOf(up, st.Ino)
	return parent, name, err
}

// nameOf finds the entry of a directory that has the inode number ino.
func nameOf(dir int, ino uint64) (string, error) {
	entries, err := list(dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		var st unix.Stat_t
		if !e.IsDir() || unix.Fstatat(dir, e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		if st.Ino == ino {
			return e.Name(), nil
		}
	}
	return "", errGone
}

func (d *disk) openObject(dir notify.Object) (int, error) {
	mnt := -1
	for i := range d.roots {
		if d.roots[i].obj.FS == dir.FS {
			mnt = d.roots[i].fd
			break
		}
	}
	if mnt < 0 {
		// Not kept open: a descriptor on a submount would make it busy.
		path, err := d.mountPoint(dir.FS)
		if err != nil {
			return -1, err
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("open mount point %s: %w", path, err)
		}
		defer unix.Close(fd)
		mnt = fd
	}
	fd, err := sys.OpenByHandle(mnt, dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if errors.Is(err, unix.ESTALE) {
		return -1, errGone
	}
	if err != nil {
		return -1, fmt.Errorf("open by handle: %w", err)
	}
	return fd, nil
}

// mountPoint returns a mount point below a root that shows the file system fs.
func (d *disk) mountPoint(fs uint64) (string, error) {
	path, ok := d.mounts[fs]
	if !ok {
		if d.mounts == nil {
			d.mounts = make(map[uint64]string)
		}
		d.mounts[fs] = "" // so that events of a foreign file system cost one scan
		for i := range d.roots {
			infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(d.roots[i].path))
			if err != nil {
				return "", fmt.Errorf("read mount table: %w", err)
			}
			for _, in := range infos {
				var st unix.Statfs_t
				if unix.Statfs(in.Mountpoint, &st) == nil {
					d.mounts[sys.FSIDOf(&st)] = in.Mountpoint
				}
			}
		}
		path = d.mounts[fs]
	}
	if path == "" {
		return "", errTop
	}
	return path, nil
}

func (d *disk) mountsChanged() { clear(d.mounts) }

// maxPath leaves room below PATH_MAX.
const maxPath = 4000

func (d *disk) openPath(root int, path string) (int, error) {
	how := unix.OpenHow{Flags: openFlags, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	dir := d.roots[root].fd
	if path == "" {
		path = "."
	}
	for at := dir; ; {
		part, rest := path, ""
		if len(path) > maxPath {
			cut := strings.LastIndexByte(path[:maxPath], '/')
			part, rest = path[:cut], path[cut+1:]
		}
		fd, err := sys.Retry(func() (int, error) { return unix.Openat2(at, part, &how) })
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
			// Older sandboxes refuse openat2; only the last component is then sure not to be a symlink.
			fd, err = unix.Openat(at, part, openFlags, 0)
		}
		if at != dir {
			unix.Close(at)
		}
		if err != nil {
			return -1, err
		}
		if rest == "" {
			return fd, nil
		}
		at, path = fd, rest
	}
}

// list reads the directory that an O_PATH descriptor refers to. The order is the
// file system's.
func list(fd int) ([]os.DirEntry, error) {
	r, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	f := os.NewFile(uintptr(r), "directory")
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return entries, fmt.Errorf("list directory: %w", err)
	}
	return entries, nil
}
