package replay

import (
	"context"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// FS is a fuse.RawFileSystem that passes everything to the one it wraps, keeps
// the view of what the guest's kernel was told, and answers the requests of the replayer.
type FS struct {
	fuse.RawFileSystem
	view    *view
	stats   Stats
	tid     atomic.Uint32
	cur     atomic.Pointer[step]
	hot     atomic.Pointer[[2]nameKey]
	staging string
	noOpen  bool
	beside  beside // nil if the wrapped file system is none
	sync    atomic.Pointer[func(context.Context) error]
	// describe answers for StatusAttr.
	describe atomic.Pointer[func() []byte]

	// mute says that the guest's kernel takes no notifications, and aside what replaces some of them.
	mute  atomic.Bool
	aside asideTable
	// leased limits how long answers may be cached while nobody replays; 0 is no limit.
	leased atomic.Int64
	// shared limits the same for superblocks of which there can be several; 0 is no limit.
	shared atomic.Int64
	// learn says that whoever looks the staging directory up is the replayer.
	learn atomic.Bool
}

var _ fuse.RawFileSystem = (*FS)(nil)

// NewFS wraps raw.
func NewFS(raw fuse.RawFileSystem) *FS {
	f := &FS{RawFileSystem: raw, view: newView(), staging: stagingName()}
	f.beside, _ = raw.(beside)
	return f
}

// beside is a file system that has the kernel do the I/O of some files. The kernel refuses what is
// opened otherwise while such a file is open, and such an open while there are others: so it counts all.
type beside interface {
	// OpenBeside counts an open that the file system does not see, and changes the answer where it has to be another.
	OpenBeside(nodeid uint64, out *fuse.OpenOut)
	// ReleaseBeside is called when it was released.
	ReleaseBeside(nodeid uint64)
	// Passing reports whether opens of nodeid reach the file on the host.
	Passing(nodeid uint64) bool
}

// WithoutOpen says that the wrapped file system answers OPEN with ENOSYS: the kernel opens
// and closes files without a request. It must be called before the file system is served.
func (f *FS) WithoutOpen() { f.noOpen = true }

// Stats returns the live counters.
func (f *FS) Stats() *Stats { return &f.stats }

// Known returns how many inodes the guest's kernel holds.
func (f *FS) Known() int { return f.view.len() }

// Entry tells of an entry that the wrapped file system handed out without a
// Lookup, as READDIRPLUS does: it raised the lookup count by one.
func (f *FS) Entry(parent uint64, name string, out *fuse.EntryOut) {
	f.cool(parent, name, out)
	f.limitEntry(parent, out)
	f.view.told(parent, name, out, true, false)
}

// cool keeps the guest's kernel from caching an answer about a name that is being
// replayed: it is ahead of the event, and the replayer has to be asked for it again.
func (f *FS) cool(parent uint64, name string, out *fuse.EntryOut) {
	hot := f.hot.Load()
	if hot == nil {
		return
	}
	for _, k := range hot {
		if k.parent == parent && k.name == name {
			out.EntryValid, out.EntryValidNsec = 0, 0
		}
	}
}

// mine returns the step that a request belongs to, or nil for a guest's request.
func (f *FS) mine(h *fuse.InHeader) *step {
	if h.Pid == 0 || h.Pid != f.tid.Load() {
		return nil
	}
	if s := f.cur.Load(); s != nil {
		return s
	}
	return &step{op: opIdle}
}

func ours(nodeid uint64) bool { return nodeid >= stagingID && nodeid != ^uint64(0) }

// Lookup implements fuse.RawFileSystem.
func (f *FS) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if s := f.mine(h); s != nil {
		return f.answerLookup(s, h.NodeId, name, out)
	}
	if h.NodeId == rootID && name == f.staging && f.learn.CompareAndSwap(true, false) {
		f.tid.Store(h.Pid)
		return f.answerLookup(&step{op: opIdle}, h.NodeId, name, out)
	}
	if ours(h.NodeId) || name == f.staging {
		return fuse.ENOENT
	}
	st := f.RawFileSystem.Lookup(cancel, h, name, out)
	f.cool(h.NodeId, name, out)
	f.limitEntry(h.NodeId, out)
	switch {
	case st.Ok() && out.NodeId != 0:
		f.view.told(h.NodeId, name, out, true, false)
	case st.Ok() || st == fuse.ENOENT:
		f.view.absent(h.NodeId, name)
	}
	return st
}

// Forget implements fuse.RawFileSystem.
func (f *FS) Forget(nodeid, nlookup uint64) {
	rest := f.view.forget(nodeid, nlookup)
	if rest > 0 && !ours(nodeid) {
		f.RawFileSystem.Forget(nodeid, rest)
	}
}

// GetAttr implements fuse.RawFileSystem.
func (f *FS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if ours(in.NodeId) {
		return f.ghostAttr(in.NodeId, &out.Attr)
	}
	st := f.RawFileSystem.GetAttr(cancel, in, out)
	if st.Ok() {
		f.view.attr(in.NodeId, &out.Attr)
		f.limitAttr(in.NodeId, out)
		f.mark(&in.InHeader, out)
	} else if f.mine(&in.InHeader) != nil {
		// The kernel checks permissions of a directory that is gone on the host, and
		// whose last events are being replayed.
		*out = fuse.AttrOut{}
		return f.ghostAttr(in.NodeId, &out.Attr)
	}
	return st
}

// SetAttr implements fuse.RawFileSystem.
func (f *FS) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if s := f.mine(&in.InHeader); s != nil {
		return f.answerSetAttr(s, in.NodeId, out)
	}
	if ours(in.NodeId) {
		return fuse.Status(syscall.ESTALE)
	}
	st := f.RawFileSystem.SetAttr(cancel, in, out)
	if st.Ok() {
		f.limitAttr(in.NodeId, out)
		f.view.attr(in.NodeId, &out.Attr)
	}
	return st
}

// made records the answer to a create operation of the guest.
func (f *FS) made(parent uint64, name string, out *fuse.EntryOut, st fuse.Status) fuse.Status {
	if st.Ok() {
		f.limitEntry(parent, out)
		f.view.mu.Lock()
		f.view.toldLocked(parent, name, out, false, false)
		f.view.marks.put(parent, name, true)
		f.view.mu.Unlock()
	}
	return st
}

// Mknod implements fuse.RawFileSystem.
func (f *FS) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := f.mine(&in.InHeader); s != nil {
		return f.answerMake(s, in.NodeId, name, in.Mode&unix.S_IFMT, out)
	}
	if ours(in.NodeId) {
		return fuse.Status(syscall.ESTALE)
	}
	return f.made(in.NodeId, name, out, f.RawFileSystem.Mknod(cancel, in, name, out))
}

// Mkdir implements fuse.RawFileSystem.
func (f *FS) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := f.mine(&in.InHeader); s != nil {
		if in.Mode&0o7777 == 0 && f.mute.Load() {
			return fuse.Status(syscall.EEXIST) // a CallAsk, which has had its answer
		}
		return f.answerMake(s, in.NodeId, name, unix.S_IFDIR, out)
	}
	if ours(in.NodeId) {
		return fuse.Status(syscall.ESTALE)
	}
	return f.made(in.NodeId, name, out, f.RawFileSystem.Mkdir(cancel, in, name, out))
}

// Symlink implements fuse.RawFileSystem.
func (f *FS) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if s := f.mine(h); s != nil {
		return f.answerMake(s, h.NodeId, name, unix.S_IFLNK, out)
	}
	if ours(h.NodeId) {
		return fuse.Status(syscall.ESTALE)
	}
	return f.made(h.NodeId, name, out, f.RawFileSystem.Symlink(cancel, h, target, name, out))
}

// Link implements fuse.RawFileSystem.
func (f *FS) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := f.mine(&in.InHeader); s != nil {
		if s.made == nil || in.Oldnodeid != s.made.NodeId {
			s.mu.Lock()
			defer s.mu.Unlock()
			return f.refuse(s, "link")
		}
		return f.answerMake(s, in.NodeId, name, s.made.Attr.Mode&unix.S_IFMT, out)
	}
	if ours(in.NodeId) || ours(in.Oldnodeid) {
		return fuse.Status(syscall.ESTALE)
	}
	return f.made(in.NodeId, name, out, f.RawFileSystem.Link(cancel, in, name, out))
}

// Create implements fuse.RawFileSystem.
func (f *FS) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if s := f.mine(&in.InHeader); s != nil {
		return f.answerCreate(s, in.NodeId, name, out)
	}
	if ours(in.NodeId) {
		return fuse.Status(syscall.ESTALE)
	}
	st := f.made(in.NodeId, name, &out.EntryOut, f.RawFileSystem.Create(cancel, in, name, out))
	if st.Ok() {
		f.view.opened(out.NodeId)
	}
	return st
}

// Unlink implements fuse.RawFileSystem.
func (f *FS) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if s := f.mine(h); s != nil {
		return f.answerRemove(s, h.NodeId, name)
	}
	if ours(h.NodeId) {
		return fuse.ENOENT
	}
	st := f.RawFileSystem.Unlink(cancel, h, name)
	if st.Ok() {
		f.view.removed(h.NodeId, name, true)
	}
	return st
}

// Rmdir implements fuse.RawFileSystem.
func (f *FS) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if s := f.mine(h); s != nil {
		return f.answerRemove(s, h.NodeId, name)
	}
	if ours(h.NodeId) {
		return fuse.ENOENT
	}
	st := f.RawFileSystem.Rmdir(cancel, h, name)
	if st.Ok() {
		f.view.removed(h.NodeId, name, true)
	}
	return st
}

// Rename implements fuse.RawFileSystem.
func (f *FS) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	if s := f.mine(&in.InHeader); s != nil {
		return f.answerRename(s, in, oldName, newName)
	}
	if ours(in.NodeId) || ours(in.Newdir) {
		return fuse.ENOENT
	}
	st := f.RawFileSystem.Rename(cancel, in, oldName, newName)
	if st.Ok() {
		f.view.renamed(in.NodeId, oldName, in.Newdir, newName, in.Flags&unix.RENAME_EXCHANGE != 0, true, nil, nil)
	}
	return st
}

// Open implements fuse.RawFileSystem.
func (f *FS) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if s := f.mine(&in.InHeader); s != nil {
		return f.answerOpen(s, in.NodeId, out)
	}
	if ours(in.NodeId) {
		return fuse.Status(syscall.ESTALE)
	}
	f.view.opened(in.NodeId)
	st := f.RawFileSystem.Open(cancel, in, out)
	if f.limit(in.NodeId) != 0 {
		out.OpenFlags &^= fuse.FOPEN_KEEP_CACHE
	}
	return st
}

// Read implements fuse.RawFileSystem.
func (f *FS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if f.noOpen {
		f.view.opened(in.NodeId)
	}
	return f.RawFileSystem.Read(cancel, in, buf)
}

// Release implements fuse.RawFileSystem. The replayer's handles are known by their number:
// RELEASE carries no thread id.
func (f *FS) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	if in.Fh == dummyFh {
		if f.beside != nil && !ours(in.NodeId) {
			f.beside.ReleaseBeside(in.NodeId)
		}
		return
	}
	f.RawFileSystem.Release(cancel, in)
}

// Flush implements fuse.RawFileSystem.
func (f *FS) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if in.Fh == dummyFh {
		return fuse.OK
	}
	return f.RawFileSystem.Flush(cancel, in)
}

// Access implements fuse.RawFileSystem.
func (f *FS) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	if f.mine(&in.InHeader) != nil {
		return fuse.OK
	}
	return f.RawFileSystem.Access(cancel, in)
}
