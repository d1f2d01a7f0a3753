package replay

import (
	"context"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// SyncAttr is the extended attribute of the mount's root whose reading returns
// when every earlier host change is visible and delivered.
const SyncAttr = "user.heraldfs.sync"

// syncTimeout bounds one read of SyncAttr.
const syncTimeout = 60 * time.Second

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
	sync    atomic.Pointer[func(context.Context) error]
	// describe answers for StatusAttr.
	describe atomic.Pointer[func() []byte]
}

var _ fuse.RawFileSystem = (*FS)(nil)

// NewFS wraps raw.
func NewFS(raw fuse.RawFileSystem) *FS {
	return &FS{RawFileSystem: raw, view: newView(), staging: stagingName()}
}

// Stats returns the live counters.
func (f *FS) Stats() *Stats { return &f.stats }

// Known returns how many inodes the guest's kernel holds.
func (f *FS) Known() int { return f.view.len() }

// Entry tells of an entry that the wrapped file system handed out without a
// Lookup, as READDIRPLUS does: it raised the lookup count by one.
func (f *FS) Entry(parent uint64, name string, out *fuse.EntryOut) {
	f.cool(parent, name, out)
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
		s.answered.Load()
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
	if ours(h.NodeId) || h.NodeId == rootID && name == f.staging {
		return fuse.ENOENT
	}
	st := f.RawFileSystem.Lookup(cancel, h, name, out)
	f.cool(h.NodeId, name, out)
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
		f.view.attr(in.NodeId, &out.Attr)
	}
	return st
}

// made records the answer to a create operation of the guest.
func (f *FS) made(parent uint64, name string, out *fuse.EntryOut, st fuse.Status) fuse.Status {
	if st.Ok() {
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
		return f.refuse(s, "create")
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

// Tmpfile implements fuse.RawFileSystem.
func (f *FS) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	st := f.RawFileSystem.Tmpfile(cancel, in, out)
	if st.Ok() {
		f.view.told(0, "", &out.EntryOut, false, false)
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
	return f.RawFileSystem.Open(cancel, in, out)
}

// OpenDir implements fuse.RawFileSystem.
func (f *FS) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if ours(in.NodeId) {
		return fuse.Status(syscall.ESTALE)
	}
	return f.RawFileSystem.OpenDir(cancel, in, out)
}

// Release implements fuse.RawFileSystem. The replayer's handles are known by their number:
// RELEASE carries no thread id.
func (f *FS) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	if in.Fh == dummyFh {
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

// GetXAttr implements fuse.RawFileSystem, and SyncAttr and StatusAttr of the root.
func (f *FS) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	if ours(h.NodeId) {
		return 0, fuse.Status(syscall.ENODATA)
	}
	if h.NodeId == rootID && attr == SyncAttr {
		return f.answerSync(cancel, dest)
	}
	if h.NodeId == rootID && attr == StatusAttr {
		return f.answerStatus(h, dest)
	}
	n, st := f.RawFileSystem.GetXAttr(cancel, h, attr, dest)
	if !st.Ok() && st != fuse.ERANGE && f.mine(h) != nil {
		return 0, fuse.Status(syscall.ENODATA)
	}
	return n, st
}

func (f *FS) answerSync(cancel <-chan struct{}, dest []byte) (uint32, fuse.Status) {
	const reply = "ok"
	do := f.sync.Load()
	if do == nil {
		return 0, fuse.Status(syscall.ENOTSUP)
	}
	if len(dest) < len(reply) {
		// A question for the size must not wait: getxattr(2) callers ask twice.
		return uint32(len(reply)), fuse.ERANGE
	}
	ctx, stop := context.WithTimeout(context.Background(), syncTimeout)
	defer stop()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-cancel:
			stop()
		case <-done:
		}
	}()
	switch err := (*do)(ctx); {
	case err == nil:
		return uint32(copy(dest, reply)), fuse.OK
	case ctx.Err() == context.DeadlineExceeded:
		return 0, fuse.Status(syscall.ETIMEDOUT)
	case ctx.Err() != nil:
		return 0, fuse.EINTR
	default:
		return 0, fuse.EIO
	}
}

func (f *FS) ghostAttr(nodeid uint64, out *fuse.Attr) fuse.Status {
	n := f.view.node(nodeid)
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	f.view.fillGhost(n, out)
	return fuse.OK
}

// fillGhost makes attributes for something that has none.
func (v *view) fillGhost(n *vnode, out *fuse.Attr) {
	*out = fuse.Attr{Ino: n.id, Mode: n.mode | 0o600, Nlink: max(v.linksOf(n), 1), Blksize: 4096}
	switch n.mode {
	case unix.S_IFDIR:
		out.Mode |= 0o700
	case unix.S_IFLNK:
		out.Mode |= 0o777
	}
}
