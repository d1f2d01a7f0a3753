//go:build linux

package tree

import (
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// RootObject is the identity of the directory that root i is, zero if it is a file.
func (t *Tree) RootObject(i int) notify.Object {
	if t.portable != nil {
		return notify.Object{}
	}
	if r := &t.roots[i]; r.file == "" {
		return r.obj
	}
	return notify.Object{}
}

// State looks at a path, which is relative to root i as in a Record. No symlink is followed. It is
// meant for the function given to Run, and costs five system calls.
func (t *Tree) State(i int, path string) State {
	if t.portable != nil {
		return t.portable.state(i, path)
	}
	d := disk{roots: t.roots}
	dir, name := "", path
	for k := len(path) - 1; k >= 0; k-- {
		if path[k] == '/' {
			dir, name = path[:k], path[k+1:]
			break
		}
	}
	if path == "." && t.roots[i].file != "" {
		name = t.roots[i].file
	}
	up, err := d.openPath(i, dir)
	if err != nil {
		return State{Known: gone(err)}
	}
	defer unix.Close(up)
	fd, err := sys.Retry(func() (int, error) {
		return unix.Openat(up, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return State{Known: gone(err)}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return State{}
	}
	s := State{Known: true, Exists: true, Ino: st.Ino, Size: uint64(st.Size), Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano()}
	if obj, _, err := sys.ObjectOf(fd); err == nil {
		s.Object = obj
	}
	return s
}
