package replay

import (
	"context"
	"log/slog"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/heraldfs/heraldfs/notify"
)

// remote is a Tree, a Notifier and the rest of what the replayer's thread must not
// touch itself, by way of a servant. NodeIDs and Object are memory only and
// are asked directly. Nobody waits for what has no result: it is posted, and what a step
// depends on is waited for once, by ready.
type remote struct {
	Tree
	serve  *servant
	raw    interface{ Forget(nodeid, nlookup uint64) }
	notify Notifier
	files  notify.FileMarker
	// failed is told, by the servant, what a notification said.
	failed func(error)
	// due says that notifications were posted that the next step must not overtake.
	due bool
}

func (r *remote) Obtain(obj notify.Object, parent uint64, name string, out *fuse.EntryOut) (st fuse.Status) {
	r.serve.run(func() { st = r.Tree.Obtain(obj, parent, name, out) })
	return st
}

func (r *remote) Attr(nodeid uint64, out *fuse.Attr) (st fuse.Status) {
	r.serve.run(func() { st = r.Tree.Attr(nodeid, out) })
	return st
}

func (r *remote) Names(nodeid uint64, yield func(name string, isDir bool) bool) error {
	type entry struct {
		name  string
		isDir bool
	}
	var all []entry
	var err error
	r.serve.run(func() {
		err = r.Tree.Names(nodeid, func(name string, isDir bool) bool {
			all = append(all, entry{name, isDir})
			return true
		})
	})
	// yield is the replayer's and belongs on its thread.
	for _, e := range all {
		if !yield(e.name, e.isDir) {
			break
		}
	}
	return err
}

// Forget gives lookups back to the wrapped file system.
func (r *remote) Forget(nodeid, nlookup uint64) {
	r.serve.post(func() { r.raw.Forget(nodeid, nlookup) })
}

// InvalInode drops what the guest has cached of an inode before the next step.
func (r *remote) InvalInode(nodeid uint64, off, length int64) {
	r.due = true
	r.serve.post(func() { r.failed(r.notify.InvalInode(nodeid, off, length)) })
}

// InvalEntry makes the guest ask again for a name before the next step.
func (r *remote) InvalEntry(parent uint64, name string, expireOnly bool) {
	r.due = true
	r.serve.post(func() { r.failed(r.notify.InvalEntry(parent, name, expireOnly)) })
}

// ready returns when the notifications are out.
func (r *remote) ready() {
	if r.due {
		r.due = false
		r.serve.await()
	}
}

// Follow has a file watched that left the known directories; Unfollow ends that.
func (r *remote) Follow(obj notify.Object, nodeid uint64) (err error) {
	r.serve.run(func() {
		err = r.Tree.WithFD(nodeid, func(fd int) error { return r.files.MarkFile(obj, fd) })
	})
	return err
}

func (r *remote) Unfollow(obj notify.Object) {
	r.serve.post(func() { r.files.Unmark(obj) })
}

// remoteLog has log lines written where their file is open.
type remoteLog struct {
	slog.Handler
	serve *servant
}

func (l remoteLog) Handle(ctx context.Context, rec slog.Record) (err error) {
	l.serve.run(func() { err = l.Handler.Handle(ctx, rec) })
	return err
}

func (l remoteLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return remoteLog{l.Handler.WithAttrs(attrs), l.serve}
}

func (l remoteLog) WithGroup(name string) slog.Handler {
	return remoteLog{l.Handler.WithGroup(name), l.serve}
}
