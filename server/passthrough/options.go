package passthrough

import (
	"log/slog"
	"os"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// HandleMode says whether nodes are reached by file handle or by a descriptor each.
type HandleMode int

const (
	// HandlePrefer uses handles where they work.
	HandlePrefer HandleMode = iota
	// HandleNever holds a descriptor for each node. Handles are still
	// what identifies objects, where there are any.
	HandleNever
	// HandleMandatory fails New where handles do not work, and lookups of objects
	// that have none.
	HandleMandatory
)

func (m HandleMode) String() string {
	switch m {
	case HandleNever:
		return "never"
	case HandleMandatory:
		return "mandatory"
	}
	return "prefer"
}

// Options configures New. The zero value is a plain passthrough without caching.
type Options struct {
	FileHandles HandleMode

	// How long the guest's kernel may keep names, attributes, and the absence of a name.
	EntryTimeout    time.Duration
	AttrTimeout     time.Duration
	NegativeTimeout time.Duration

	// ReadOnly refuses every change with EROFS.
	ReadOnly bool

	// NoOpendir answers OPENDIR with ENOSYS, after which the kernel opens
	// directories without asking, and caches listings. It needs
	// the capability that MountOptions asks for.
	NoOpendir bool

	// NoOpen answers OPEN with ENOSYS, after which the kernel opens and closes regular files without
	// a word and reads and writes by nodeid: see the package comment for what that loses. It
	// needs the right to open any file, and pages are kept as with KeepCache, always.
	NoOpen bool

	// KeepCache keeps pages and listings over opens. Somebody has to invalidate them when the host changes.
	KeepCache bool

	// Foreign says that the root is a mount with caches of its own, of a directory that others change:
	// attributes are asked for past them, and the guest's pages go when a file's attributes have changed.
	Foreign bool

	// ForeignPids says that the pids in requests are not of our pid namespace (a virtual
	// machine). Supplementary groups are then unknown, and the
	// guest kernel's permission check is taken to have considered them.
	ForeignPids bool

	// AnnounceSubmounts has the kernel mount what lies on other devices than its parent, so that every device of the host is
	// one in the guest, and objects show the host's st_ino. It needs a kernel that offers FUSE_SUBMOUNTS.
	AnnounceSubmounts bool

	// NodeLimit, if not nil, returns how many nodes there may be; a lookup that would make one more
	// fails with ENOMEM. It is asked for each new node.
	NodeLimit func() int

	// Landlocked says that the process is under Landlock. It lets nobody read or truncate a file that was opened by handle
	// and whose name is not cached; such a file answers ESTALE, so that the guest looks it up by name again.
	Landlocked bool

	// MaxFDs bounds the cached descriptors of directories. 0 is a quarter of RLIMIT_NOFILE.
	MaxFDs int

	// Backing, if not nil, has files that are opened for reading read by the guest's kernel itself: see
	// the package comment. It asks for CAP_PASSTHROUGH. Not with NoOpen.
	Backing Backing
	// PassthroughMin is the size from which that is done, in bytes; 1 MiB if zero.
	PassthroughMin int64
	// Unheard, if not nil, is called with a directory of each mount (the descriptor stays ours) before backing files are opened
	// through that mount, and has what is done through it, under the pids of the guest, not taken for what the host does. Where it
	// fails nothing is passed through. With nil nobody listens.
	Unheard func(fd int) error

	// Ledger, if not nil, is told of every change before it is made.
	Ledger notify.Ledger
	// Marker, if not nil, marks each directory before the guest knows it. If it has a method Covered(notify.Object) bool, that says
	// of which objects every change is heard of without; files that have several names are not cached otherwise.
	Marker notify.Marker
	// Observer, if not nil, is told of entries that READDIRPLUS hands out.
	Observer Observer
	// Logger is where to log; nil discards.
	Logger *slog.Logger
}

// Observer hears of lookup counts raised in the middle of a listing.
type Observer interface {
	// Entry is called before the READDIRPLUS reply goes out. child is
	// valid during the call.
	Entry(parent uint64, name string, child *fuse.EntryOut)
}

// MountOptions returns what fs wants from fuse.NewServer or
// fuse.NewProtocolServer; the caller adds names, AllowOther and sizes. EnableAcl makes
// the kernel check permissions (default_permissions), which fs relies on.
func (fs *FS) MountOptions() fuse.MountOptions {
	o := fuse.MountOptions{
		Name:                     "heraldfs",
		EnableLocks:              !fs.opts.NoOpen, // nobody would tell of the close that ends them
		EnableAcl:                true,
		EnableSymlinkCaching:     fs.opts.KeepCache,
		ExplicitDataCacheControl: fs.opts.KeepCache && !fs.opts.Foreign,
		DisableSplice:            true, // replies are read into, or in one copy from memory
		MaxWrite:                 1 << 20,
		MaxBackground:            64,
		ExtraCapabilities: fuse.CAP_DONT_MASK | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_SETXATTR_EXT |
			fuse.CAP_ASYNC_DIO | fuse.CAP_READDIRPLUS_AUTO |
			fuse.CAP_HAS_EXPIRE_ONLY | fuse.CAP_HAS_RESEND,
	}
	if fs.opts.Backing != nil {
		o.ExtraCapabilities |= fuse.CAP_PASSTHROUGH
		o.MaxStackDepth = 1
	} else {
		// It would make the mount a layer of a stack, of which there can be two.
		o.DisabledCapabilities |= fuse.CAP_PASSTHROUGH
	}
	if fs.opts.AnnounceSubmounts {
		o.ExtraCapabilities |= fuse.CAP_SUBMOUNTS
	}
	if !fs.opts.NoOpen {
		// Without an OPEN that truncates, a SETATTR has to.
		o.ExtraCapabilities |= fuse.CAP_ATOMIC_O_TRUNC
	}
	if fs.opts.NoOpendir {
		o.ExtraCapabilities |= fuse.CAP_NO_OPENDIR_SUPPORT
	}
	if os.Geteuid() == 0 {
		o.Options = append(o.Options, "default_permissions")
	}
	if fs.opts.ReadOnly {
		o.Options = append(o.Options, "ro")
		o.DirectMountFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_RDONLY
	}
	return o
}
