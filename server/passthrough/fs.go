package passthrough

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// FS shows a host directory. It implements fuse.RawFileSystem.
type FS struct {
	opts Options
	log  *slog.Logger

	// handles says that nodes may be opened by handle.
	handles bool
	ids     identity

	root    *node
	nodes   *table
	mounts  *mounts
	ring    fdRing
	files   fileTable
	streams streamCache
	ios     ioCache
	markMu  [16]sync.Mutex
	keep    timeouts
	// noPassage says that no file can be passed through.
	noPassage atomic.Bool
	passed    atomic.Uint64

	tooMany   sync.Once
	closeOnce sync.Once
}

var _ fuse.RawFileSystem = (*FS)(nil)

// New opens root, a directory of the host. It sets the process's umask to 0.
func New(root string, opts Options) (*FS, error) {
	fs := &FS{opts: opts, log: opts.Logger, nodes: newTable(), mounts: newMounts()}
	if fs.log == nil {
		fs.log = slog.New(slog.DiscardHandler)
	}
	fs.SetTimeouts(opts.EntryTimeout, opts.AttrTimeout, opts.NegativeTimeout)
	if fs.opts.NoOpen {
		fs.opts.Backing = nil // the kernel has no such mode where it does not ask
	}
	if fs.opts.PassthroughMin <= 0 {
		fs.opts.PassthroughMin = defaultPassthroughMin
	}
	fs.handles = opts.FileHandles != HandleNever
	fs.files.init()
	fs.ios.closing = func(f *openFile) func() { return fs.expectOn(f.n, notify.CloseWrite) }
	fs.ring.max = opts.MaxFDs
	if fs.ring.max <= 0 {
		var lim unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
			return nil, fmt.Errorf("getrlimit: %w", err)
		}
		fs.ring.max = int(min(lim.Cur, 1<<20) / 4)
	}
	fs.ios.max = fs.ring.max
	var err error
	if fs.ids, err = ownIdentity(); err != nil {
		return nil, err
	}
	unix.Umask(0)
	raw, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	if err := fs.addRoot(raw); err != nil {
		unix.Close(raw)
		return nil, fmt.Errorf("%s: %w", root, err)
	}
	return fs, nil
}

// addRoot makes the root node and keeps raw.
func (fs *FS) addRoot(raw int) error {
	obj, id, err := sys.ObjectOf(raw)
	if err != nil {
		return err
	}
	m, err := fs.mount(id, raw)
	if err != nil {
		return err
	}
	if m.fd == nil && fs.opts.FileHandles == HandleMandatory {
		fs.releaseMount(m)
		return fmt.Errorf("opening by file handle: %w", notify.ErrNotSupported)
	}
	if m.fd == nil && fs.opts.FileHandles == HandlePrefer {
		fs.log.Info("file handles cannot be used: every known object needs a descriptor")
	}
	var st unix.Stat_t
	if err := unix.Fstat(raw, &st); err != nil {
		fs.releaseMount(m)
		return err
	}
	dev, err := fs.device(m, st.Dev, raw)
	if err != nil {
		fs.releaseMount(m)
		return err
	}
	n := newNode(dev, unix.S_IFDIR, obj.Type, []byte(obj.Handle))
	n.id = rootID
	n.set(hostIno)
	n.holdLocked().pin = sys.NewFD(raw)
	fs.root, _ = fs.nodes.insert(n)
	if err := fs.mark(fs.root, raw); err != nil {
		fs.releaseMount(m)
		return fmt.Errorf("mark the root: %w", err)
	}
	return nil
}

// Close releases every descriptor. The mount must be gone, or nobody must be serving it.
func (fs *FS) Close() error {
	fs.closeOnce.Do(func() {
		fs.files.closeAll()
		fs.ios.closeAll()
		fs.streams.closeAll()
		for _, n := range fs.nodes.drain() {
			if fs.opts.Marker != nil && n.isDir() {
				fs.opts.Marker.Unmark(n.object())
			}
			fs.bury(n)
		}
	})
	return nil
}

// bury frees what a node holds after it has left the table.
func (fs *FS) bury(n *node) {
	fs.dropCached(n)
	n.mu.Lock()
	n.gone = true
	var pin *sys.FD
	var locks *lockState
	var id int32
	if h := n.holds; h != nil {
		pin, locks, id = h.pin, h.locks, h.backing
		h.pin, h.locks, h.opens, h.backing = nil, nil, 0, 0
	}
	n.mu.Unlock()
	// Between drop and gone a request in flight can have cached one more.
	fs.dropCached(n)
	pin.Release()
	if id != 0 {
		fs.closeBacking(id)
	}
	if locks != nil {
		locks.closeAll()
	}
	fs.releaseMount(n.dev.mnt)
}

// dropCached closes what is open of n for speed alone.
func (fs *FS) dropCached(n *node) {
	if n.isDir() {
		fs.ring.drop(n)
	} else {
		fs.ios.drop(n)
	}
}

// Forget implements fuse.RawFileSystem.
func (fs *FS) Forget(nodeid, nlookup uint64) {
	n := fs.nodes.forget(nodeid, nlookup)
	if n == nil {
		return
	}
	if n.isDir() {
		fs.unmark(n)
		fs.streams.drop(n)
	}
	fs.bury(n)
}

// String is what go-fuse shows as the file system's type.
func (fs *FS) String() string { return "heraldfs" }

// SetDebug implements fuse.RawFileSystem; logging is by Options.Logger.
func (fs *FS) SetDebug(bool) {}

// Init implements fuse.RawFileSystem.
func (fs *FS) Init(*fuse.Server) {}

// OnUnmount implements fuse.RawFileSystem.
func (fs *FS) OnUnmount() {}

// node returns the node that a request names. The kernel names none that
// it has not been told of, and none that it has forgotten.
func (fs *FS) node(id uint64) (*node, error) {
	if n := fs.nodes.get(id); n != nil {
		return n, nil
	}
	return nil, unix.ESTALE
}

// StatFs implements fuse.RawFileSystem.
func (fs *FS) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	n, err := fs.node(h.NodeId)
	if err != nil {
		return status(err)
	}
	fd, err := fs.ref(n)
	if err != nil {
		return status(err)
	}
	defer fd.Release()
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd.Int(), &st); err != nil {
		return status(err)
	}
	out.Blocks, out.Bfree, out.Bavail = st.Blocks, st.Bfree, st.Bavail
	out.Files, out.Ffree = st.Files, st.Ffree
	out.Bsize, out.Frsize, out.NameLen = uint32(st.Bsize), uint32(st.Frsize), uint32(st.Namelen)
	return fuse.OK
}

// status converts an error to what the kernel is told.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var errno unix.Errno
	switch {
	case errors.As(err, &errno):
		return fuse.Status(errno)
	case errors.Is(err, notify.ErrNotSupported):
		return fuse.ENOTSUP
	case errors.Is(err, os.ErrNotExist):
		return fuse.ENOENT
	}
	return fuse.EIO
}

// validName refuses what is not one path component.
func validName(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.Contains(name, "/")
}
