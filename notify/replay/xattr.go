package replay

import (
	"context"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// SyncAttr is the extended attribute of the mount's root whose reading returns
// when every earlier host change is visible and delivered.
const SyncAttr = "user.heraldfs.sync"

// syncTimeout bounds one read of SyncAttr.
const syncTimeout = 60 * time.Second

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

// ListXAttr implements fuse.RawFileSystem.
func (f *FS) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if ours(h.NodeId) {
		return 0, fuse.OK
	}
	return f.RawFileSystem.ListXAttr(cancel, h, dest)
}
