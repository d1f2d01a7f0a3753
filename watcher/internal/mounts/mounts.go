// Package mounts tells which mounts lie at or below a directory, and when that
// changes.
//
// A Table is refreshed by one goroutine; anybody may ask what is known. Its descriptor becomes ready (POLLPRI)
// whenever anything is mounted or unmounted in the mount namespace in which the
// Table was opened; Refresh then says what that meant for the directory.
package mounts

import (
	"fmt"
	"io"
	"path/filepath"
	"sort"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// statxMntIDUnique is STATX_MNT_ID_UNIQUE (Linux 6.8): a mount id that is never reused.
const statxMntIDUnique = 0x4000

// Mount is one mount at or below the root of a Table.
type Mount struct {
	// Path is absolute and free of symlinks; it may be hidden by a later mount.
	Path   string
	FSType string
	Source string
	// Dir and Name are the entry that is covered. Dir is zero if the parent
	// could not be opened.
	Dir  notify.Object
	Name string

	key key
}

// key tells two mounts apart. The id of mountinfo is reused as soon as it is
// free, so the unique id stands beside it where the kernel has one.
type key struct {
	id, parent, major, minor int
	unique                   uint64
	path                     string
}

// Table holds the mounts at or below one directory.
type Table struct {
	root string
	fd   int

	mu    sync.Mutex
	known map[key]Mount
}

// Open lists the mounts below root, an absolute path without symlinks. A
// mount at root itself counts only if it comes later.
func Open(root string) (*Table, error) {
	// The file remembers the state of the table when it was opened, so nothing
	// that happens during the first scan is missed. It must not come near Go's
	// network poller, which would poll the change away.
	fd, err := unix.Open(sys.ProcSelf("mountinfo"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open mountinfo: %w", err)
	}
	t := &Table{root: filepath.Clean(root), fd: fd, known: make(map[key]Mount)}
	if _, _, err := t.Refresh(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Fd is polled for POLLPRI. Each poll that reports a change forgets it.
func (t *Table) Fd() int { return t.fd }

// Close frees the descriptor. Idempotent.
func (t *Table) Close() {
	if t.fd >= 0 {
		unix.Close(t.fd)
		t.fd = -1
	}
}

// Below returns the known mounts below the root, parents first.
func (t *Table) Below() []Mount {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]Mount, 0, len(t.known))
	for _, m := range t.known {
		if m.Path != t.root {
			all = append(all, m)
		}
	}
	sortMounts(all)
	return all
}

// Refresh reads the mount table again and returns what came (parents first) and
// what went (children first).
func (t *Table) Refresh() (added, gone []Mount, err error) {
	// By the descriptor, because a process may not be allowed to open the file again. That does not
	// change what poll reports.
	_, err = unix.Seek(t.fd, 0, io.SeekStart)
	var infos []*mountinfo.Info
	if err == nil {
		infos, err = mountinfo.GetMountsFromReader(reader(t.fd), mountinfo.PrefixFilter(t.root))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read mount table: %w", err)
	}
	t.mu.Lock()
	known := t.known
	t.mu.Unlock()
	now := make(map[key]Mount, len(infos))
	for _, in := range infos {
		k := key{id: in.ID, parent: in.Parent, major: in.Major, minor: in.Minor,
			unique: uniqueID(in.Mountpoint), path: in.Mountpoint}
		m, ok := known[k]
		if !ok {
			m = Mount{Path: in.Mountpoint, FSType: in.FSType, Source: in.Source,
				Name: filepath.Base(in.Mountpoint), Dir: parentObject(in.Mountpoint), key: k}
			added = append(added, m)
		}
		now[k] = m
	}
	for k, m := range known {
		if _, ok := now[k]; !ok {
			gone = append(gone, m)
		}
	}
	t.mu.Lock()
	t.known = now
	t.mu.Unlock()
	sortMounts(added)
	sortMounts(gone)
	for i, j := 0, len(gone)-1; i < j; i, j = i+1, j-1 {
		gone[i], gone[j] = gone[j], gone[i]
	}
	return added, gone, nil
}

// reader reads a descriptor.
type reader int

func (r reader) Read(b []byte) (int, error) {
	n, err := sys.Retry(func() (int, error) { return unix.Read(int(r), b) })
	switch {
	case err != nil:
		return 0, err
	case n == 0 && len(b) > 0:
		return 0, io.EOF
	}
	return n, nil
}

func sortMounts(ms []Mount) {
	sort.Slice(ms, func(i, j int) bool {
		if ms[i].Path != ms[j].Path {
			return ms[i].Path < ms[j].Path
		}
		return ms[i].key.id < ms[j].key.id
	})
}

// uniqueID asks nothing of the file system, which may be one that hangs.
func uniqueID(path string) uint64 {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path,
		unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, statxMntIDUnique, &st)
	if err != nil || st.Mask&statxMntIDUnique == 0 {
		return 0
	}
	return st.Mnt_id
}

// parentObject is zero if the parent is out of reach.
func parentObject(path string) notify.Object {
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return notify.Object{}
	}
	defer unix.Close(fd)
	o, _, err := sys.ObjectOf(fd)
	if err != nil {
		return notify.Object{}
	}
	return o
}
