package passthrough

import (
	"encoding/binary"
	"hash/fnv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
)

// mount is one mount id at or below SOURCE. It lives while a node is on it: its
// descriptor keeps the id from being used again, and the file system busy.
type mount struct {
	id   uint64
	refs atomic.Int64
	// fd opens handles on this mount; nil where that does not work.
	fd   *sys.FD
	pass passage

	mu      sync.Mutex
	devices []*device
}

// device is one st_dev on a mount; btrfs has one for each subvolume.
type device struct {
	mnt  *mount
	dev  uint64
	fsid uint64
	// index is 0 on the root's device.
	index uint64
	// mute says that close(2) never fails there.
	mute bool
}

// ino maps the host's inode number to the guest's.
func (d *device) ino(host uint64) uint64 {
	if d.index == 0 {
		return host
	}
	if host < 1<<48 && d.index < 1<<15 {
		return d.index<<48 | host
	}
	h := fnv.New64a()
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:8], d.dev)
	binary.NativeEndian.PutUint64(b[8:], host)
	h.Write(b[:])
	return h.Sum64() | 1<<63
}

// closesQuietly reports whether fd is on a file system that does nothing at close(2): it has no flush operation, and
// says what went wrong to those who write or sync.
func closesQuietly(fd int) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil {
		return false
	}
	switch st.Type {
	case unix.TMPFS_MAGIC, unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
		return true
	}
	return false
}

func (m *mount) acquire() bool {
	for {
		n := m.refs.Load()
		if n <= 0 {
			return false
		}
		if m.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// mounts finds mounts by id.
type mounts struct {
	mu    sync.RWMutex
	byID  map[uint64]*mount
	index map[uint64]uint64 // st_dev to device.index
	// excluded are device numbers that are never entered.
	excluded map[uint64]bool
}

func newMounts() *mounts {
	return &mounts{byID: map[uint64]*mount{}, index: map[uint64]uint64{}, excluded: map[uint64]bool{}}
}

// get returns the mount with this id, which fd (O_PATH will do) is on, referenced.
func (fs *FS) mount(id uint64, fd int) (*mount, error) {
	ms := fs.mounts
	ms.mu.RLock()
	m := ms.byID[id]
	ok := m != nil && m.acquire()
	ms.mu.RUnlock()
	if ok {
		return m, nil
	}
	_, dev, err := sys.MountOf(fd)
	if err != nil {
		return nil, err
	}
	ms.mu.RLock()
	bad := ms.excluded[dev]
	ms.mu.RUnlock()
	if bad {
		return nil, unix.ELOOP
	}
	fresh := &mount{id: id}
	fresh.refs.Store(1)
	if fresh.fd, err = fs.handleRoot(id, fd); err != nil {
		return nil, err
	}
	ms.mu.Lock()
	if m := ms.byID[id]; m != nil && m.acquire() {
		ms.mu.Unlock()
		fresh.fd.Release()
		return m, nil
	}
	ms.byID[id] = fresh
	ms.mu.Unlock()
	return fresh, nil
}

// handleRoot returns a descriptor through which handles of the mount that fd is
// on can be opened, or nil where there are no such handles.
func (fs *FS) handleRoot(id uint64, fd int) (*sys.FD, error) {
	if !fs.handles {
		return nil, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if t := st.Mode & unix.S_IFMT; t != unix.S_IFDIR && t != unix.S_IFREG {
		return nil, nil
	}
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(fd, &sfs); err != nil {
		return nil, err
	}
	// A FUSE handle is a nodeid: it dies with the cached inode.
	if sfs.Type == unix.FUSE_SUPER_MAGIC {
		return nil, nil
	}
	raw, err := sys.Reopen(fd, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	root := sys.NewFD(raw)
	obj, _, err := sys.ObjectOf(raw)
	if err == nil {
		var probe int
		if probe, err = sys.OpenByHandle(raw, obj, unix.O_PATH); err == nil {
			var got uint64
			if got, _, err = sys.MountOf(probe); err == nil && got != id {
				err = unix.EXDEV
			}
			unix.Close(probe)
		}
	}
	if err != nil {
		root.Release()
		fs.log.Debug("no usable file handles", "mount", id, "error", err)
		return nil, nil
	}
	return root, nil
}

// release gives a reference back.
func (fs *FS) releaseMount(m *mount) {
	if m.refs.Add(-1) > 0 {
		return
	}
	fs.mounts.mu.Lock()
	if fs.mounts.byID[m.id] == m {
		delete(fs.mounts.byID, m.id)
	}
	fs.mounts.mu.Unlock()
	m.fd.Release()
	m.pass.fd.Release()
}

// device returns what is known of dev, which fd is on.
func (fs *FS) device(m *mount, dev uint64, fd int) (*device, error) {
	m.mu.Lock()
	for _, d := range m.devices {
		if d.dev == dev {
			m.mu.Unlock()
			return d, nil
		}
	}
	m.mu.Unlock()
	fsid, err := sys.FSID(fd)
	if err != nil {
		return nil, err
	}
	fs.mounts.mu.Lock()
	index, ok := fs.mounts.index[dev]
	if !ok {
		index = uint64(len(fs.mounts.index))
		fs.mounts.index[dev] = index
	}
	fs.mounts.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.devices {
		if d.dev == dev {
			return d, nil
		}
	}
	d := &device{mnt: m, dev: dev, fsid: fsid, index: index, mute: closesQuietly(fd)}
	m.devices = append(m.devices, d)
	return d, nil
}

// Exclude keeps the guest out of the file system with this st_dev: a lookup that
// would enter it fails with ELOOP. It is for the guest mount itself, where that lies
// below SOURCE: asking it would wait for ourselves.
func (fs *FS) Exclude(dev uint64) {
	fs.mounts.mu.Lock()
	fs.mounts.excluded[dev] = true
	fs.mounts.mu.Unlock()
}
