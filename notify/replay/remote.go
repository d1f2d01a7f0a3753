package replay

import (
	"context"
	"log/slog"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/heraldfs/heraldfs/notify"
)

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
	r.serve.run(func() { r.raw.Forget(nodeid, nlookup) })
}

func (r *remote) InvalInode(nodeid uint64, off, length int64) (err error) {
	r.serve.run(func() { err = r.notify.InvalInode(nodeid, off, length) })
	return err
}

func (r *remote) InvalEntry(parent uint64, name string, expireOnly bool) (err error) {
	r.serve.run(func() { err = r.notify.InvalEntry(parent, name, expireOnly) })
	return err
}

// Follow has a file watched that left the known directories; Unfollow ends that.
func (r *remote) Follow(obj notify.Object, nodeid uint64) (err error) {
	r.serve.run(func() {
		err = r.Tree.WithFD(nodeid, func(fd int) error { return r.files.MarkFile(obj, fd) })
	})
	return err
}

func (r *remote) Unfollow(obj notify.Object) {
	r.serve.run(func() { r.files.Unmark(obj) })
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
