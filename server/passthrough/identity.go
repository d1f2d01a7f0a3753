package passthrough

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// ErrOutside says that an object is not below SOURCE, or is SOURCE itself.
var ErrOutside = errors.New("not below the root")

// NodeIDs appends to dst the nodeids by which the guest knows obj: one for each mount
// id that it was seen on. It is one map lookup.
func (fs *FS) NodeIDs(dst []uint64, obj notify.Object) []uint64 { return fs.nodes.ids(dst, obj) }

// Object returns what a nodeid stands for.
func (fs *FS) Object(nodeid uint64) (notify.Object, bool) {
	n := fs.nodes.get(nodeid)
	if n == nil {
		return notify.Object{}, false
	}
	return n.object(), true
}

// Attr fills out from the host. An object that is unlinked and still held answers with Nlink 0;
// one that is gone, with ESTALE.
func (fs *FS) Attr(nodeid uint64, out *fuse.Attr) fuse.Status {
	n, err := fs.node(nodeid)
	if err != nil {
		return status(err)
	}
	fd, err := fs.ref(n)
	if err != nil {
		return status(err)
	}
	defer fd.Release()
	var st unix.Stat_t
	if err := fs.fstat(fd.Int(), &st); err != nil {
		return status(err)
	}
	fillAttr(out, n, &st)
	return fuse.OK
}

// Obtain fills out with an entry for a live object and raises its lookup count by one,
// which the caller undoes with Forget(out.NodeId, 1). If obj is not zero the object is found by
// handle, whatever its name is now, and where there are no handles, among what the guest knows
// and under the name. If obj is zero it is what parent has under name. ENOENT: it is gone.
func (fs *FS) Obtain(obj notify.Object, parent uint64, name string, out *fuse.EntryOut) fuse.Status {
	p, err := fs.node(parent)
	if err != nil {
		return status(gone(err))
	}
	if !obj.IsZero() {
		if done, err := fs.obtainObject(p, name, obj, out); done {
			return status(err)
		}
	}
	if !validName(name) {
		return fuse.EINVAL
	}
	dir, err := fs.ref(p)
	if err != nil {
		return status(gone(err))
	}
	defer dir.Release()
	if err := fs.lookup(p, dir.Int(), name, out); err != nil {
		return status(err)
	}
	if n := fs.nodes.get(out.NodeId); obj.IsZero() || (n != nil && n.object() == obj) {
		return fuse.OK
	}
	fs.Forget(out.NodeId, 1)
	*out = fuse.EntryOut{}
	return fuse.ENOENT
}

// obtainObject tries without the name. done says that the result is final.
func (fs *FS) obtainObject(p *node, name string, obj notify.Object, out *fuse.EntryOut) (done bool, err error) {
	if obj.Type != notify.TypeInode && p.dev.mnt.fd != nil && p.dev.fsid == obj.FS {
		raw, err := sys.OpenByHandle(p.dev.mnt.fd.Int(), obj, unix.O_PATH|unix.O_NOFOLLOW)
		if err == nil {
			return true, fs.enterLinked(p, name, raw, out)
		}
		if err == unix.ESTALE {
			return true, unix.ENOENT
		}
		if err != unix.EOPNOTSUPP && err != unix.EINVAL {
			return true, err
		}
	}
	var ids [4]uint64
	for _, id := range fs.nodes.ids(ids[:0], obj) {
		n := fs.nodes.get(id)
		if n == nil {
			continue
		}
		fd, err := fs.ref(n)
		if err != nil {
			continue
		}
		raw, err := unix.FcntlInt(uintptr(fd.Int()), unix.F_DUPFD_CLOEXEC, 0)
		fd.Release()
		if err != nil {
			return true, err
		}
		return true, fs.enterLinked(p, name, raw, out)
	}
	return false, nil
}

// enterLinked enters raw, an object that has a name somewhere, and consumes it.
func (fs *FS) enterLinked(p *node, name string, raw int, out *fuse.EntryOut) error {
	var st unix.Stat_t
	err := fs.fstat(raw, &st)
	if err == nil && st.Nlink == 0 {
		err = unix.ENOENT
	}
	if err != nil {
		unix.Close(raw)
		return err
	}
	return fs.enterPath(p, name, raw, out)
}

// Moved tells fs that the host has renamed obj, so that it is found by name again. It
// is optional.
func (fs *FS) Moved(obj, dir notify.Object, name string) {
	var ids, dirs [4]uint64
	parents := fs.nodes.ids(dirs[:0], dir)
	for _, id := range fs.nodes.ids(ids[:0], obj) {
		n := fs.nodes.get(id)
		if n == nil {
			continue
		}
		for _, pid := range parents {
			if p := fs.nodes.get(pid); p != nil && p.dev.mnt == n.dev.mnt {
				n.sawAt(pid, name)
			}
		}
	}
}

// Drop closes what fs keeps open of a directory for speed alone. Whoever knows that the host
// has removed obj calls it: while a descriptor is open, the host's own watchers of
// the directory do not hear DELETE_SELF. It is optional.
func (fs *FS) Drop(obj notify.Object) {
	var ids [4]uint64
	for _, id := range fs.nodes.ids(ids[:0], obj) {
		if n := fs.nodes.get(id); n != nil && n.isDir() {
			fs.ring.drop(n)
			fs.streams.drop(n)
		}
	}
}

// Locate says where a directory is now on the host: the directory that it is in, and
// its name there. Errors: ErrOutside, notify.ErrNotSupported without handles, ESTALE if it
// is gone.
func (fs *FS) Locate(obj notify.Object) (parent notify.Object, name string, err error) {
	fd, err := fs.openObject(obj)
	if err != nil {
		return notify.Object{}, "", fmt.Errorf("locate %v: %w", obj, err)
	}
	defer fd.Release()
	parent, name, err = fs.locate(fd.Int())
	if err != nil {
		return notify.Object{}, "", fmt.Errorf("locate %v: %w", obj, err)
	}
	return parent, name, nil
}

// openObject opens a directory by handle, or returns the descriptor of a known one.
func (fs *FS) openObject(obj notify.Object) (*sys.FD, error) {
	var ids [4]uint64
	for _, id := range fs.nodes.ids(ids[:0], obj) {
		if n := fs.nodes.get(id); n != nil {
			return fs.ref(n)
		}
	}
	m := fs.mountOf(obj.FS)
	if m == nil || m.fd == nil {
		if m != nil {
			fs.releaseMount(m)
		}
		return nil, notify.ErrNotSupported
	}
	defer fs.releaseMount(m)
	raw, err := sys.OpenByHandle(m.fd.Int(), obj, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err == unix.EOPNOTSUPP || err == unix.EINVAL {
		return nil, notify.ErrNotSupported
	}
	if err != nil {
		return nil, err
	}
	return sys.NewFD(raw), nil
}

// mountOf returns a mount that shows the file system, referenced; the root's if it does.
func (fs *FS) mountOf(fsid uint64) *mount {
	fs.mounts.mu.RLock()
	defer fs.mounts.mu.RUnlock()
	if fs.root.dev.fsid == fsid && fs.root.dev.mnt.acquire() {
		return fs.root.dev.mnt
	}
	for _, m := range fs.mounts.byID {
		m.mu.Lock()
		found := false
		for _, d := range m.devices {
			found = found || d.fsid == fsid
		}
		m.mu.Unlock()
		if found && m.acquire() {
			return m
		}
	}
	return nil
}

func (fs *FS) locate(fd int) (parent notify.Object, name string, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return parent, "", err
	}
	if st.Nlink == 0 {
		return parent, "", unix.ESTALE
	}
	root, err := fs.ref(fs.root)
	if err != nil {
		return parent, "", err
	}
	defer root.Release()
	// The path and ".." are two questions: ask until the answers are of one moment.
	for range 16 {
		top, err := os.Readlink(sys.ProcPath(root.Int()))
		if err != nil {
			return parent, "", err
		}
		path, err := os.Readlink(sys.ProcPath(fd))
		if err != nil {
			return parent, "", err
		}
		if path == top || !strings.HasPrefix(path, strings.TrimSuffix(top, "/")+"/") {
			return parent, "", ErrOutside
		}
		up, err := unix.Openat(fd, "..", pathFlags|unix.O_DIRECTORY, 0)
		if err != nil {
			return parent, "", err
		}
		parent, _, err = sys.ObjectOf(up)
		unix.Close(up)
		if err != nil {
			return parent, "", err
		}
		if again, err := os.Readlink(sys.ProcPath(fd)); err == nil && again == path {
			return parent, filepath.Base(path), nil
		}
	}
	return parent, "", unix.EAGAIN
}
