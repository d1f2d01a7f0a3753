//go:build linux

package tree

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher"
)

// Tree watches some roots.
type Tree struct {
	portable *portableTree // takes the place of all else

	roots  []rootDir
	groups []*group

	mu   sync.Mutex // one delivery at a time
	emit func([]Record)

	closeOnce sync.Once
	closeErr  error
}

// Open starts watching: with a filesystem mark, changes that are made after Open has
// returned are told by Run. Otherwise Run walks the roots first.
func Open(o Options) (*Tree, error) {
	if o.Backend == watcher.Portable {
		p, err := openPortable(o)
		if err != nil {
			return nil, err
		}
		return &Tree{portable: p}, nil
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Mask == 0 {
		o.Mask = notify.DefaultMask
	}
	o.Mask |= tableMask
	if !o.NoIgnoreFiles {
		o.Mask |= notify.CloseWrite // a file of patterns has been written
	}
	roots, err := openRoots(&o)
	if err != nil {
		return nil, err
	}
	t := &Tree{roots: roots}
	for i := range roots {
		if err := t.addRoot(i, &o); err != nil {
			t.Close()
			return nil, err
		}
	}
	return t, nil
}

// addRoot gives root i to a watcher that hears of it already, or to a new one.
func (t *Tree) addRoot(i int, o *Options) error {
	r := &t.roots[i]
	for _, g := range t.groups {
		if g.w.Marker != nil || g.fs == r.obj.FS {
			g.add(i, r)
			return nil
		}
	}
	w, err := watcher.Open(watcher.Options{
		Root: r.path, Backend: o.Backend, Mask: o.Mask, DropPid: o.DropPid,
		Logger: o.Logger, LimitedQueue: o.LimitedQueue, ForceInodeMarks: o.ForceInodeMarks,
	})
	if err != nil {
		return fmt.Errorf("watch %s: %w", o.Roots[i], err)
	}
	g := newGroup(t, w, r.obj.FS, o)
	t.groups = append(t.groups, g)
	g.add(i, r)
	return nil
}

// Backends names the backend of each watcher, and why it was chosen.
func (t *Tree) Backends() (names, why []string) {
	if t.portable != nil {
		return t.portable.backends()
	}
	for _, g := range t.groups {
		names = append(names, g.w.Backend)
		why = append(why, g.w.Why)
	}
	return names, why
}

// Run emits Records, the first of which is Ready, until ctx ends or Close is called,
// and then returns nil. emit is called by one goroutine at a time; it may not keep
// the slice. While it blocks, the kernel's queue grows.
func (t *Tree) Run(ctx context.Context, emit func([]Record)) error {
	if t.portable != nil {
		return t.portable.run(ctx, emit)
	}
	outer := ctx
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	t.emit = emit
	var run, walk sync.WaitGroup
	for _, g := range t.groups {
		g.cancel = cancel
		run.Go(func() {
			err := g.w.Run(ctx, g.heard)
			// A Close or the end of ctx ends all of them.
			cancel(err)
		})
		run.Go(func() { g.fences(ctx) })
		run.Go(func() { g.watchRoots(ctx) })
		walk.Go(func() {
			if err := g.walk(ctx); err != nil {
				cancel(err)
			}
		})
	}
	walk.Wait()
	if ctx.Err() == nil {
		t.deliver([]Record{{Type: TypeReady, IsDir: true, Path: ".", Time: time.Now()}})
		for _, g := range t.groups {
			g.start()
		}
	}
	run.Wait()
	for _, g := range t.groups {
		g.fail() // whoever waits in Barrier
	}
	if outer.Err() != nil {
		return nil
	}
	// Canceled: a watcher ended because of Close.
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Barrier returns when every change that was made before the call has been emitted. It
// needs Run, and must not be called from its function.
func (t *Tree) Barrier(ctx context.Context) error {
	if t.portable != nil {
		return t.portable.Barrier(ctx)
	}
	for _, g := range t.groups {
		if err := g.barrier(ctx); err != nil {
			return fmt.Errorf("barrier: %w", err)
		}
	}
	return nil
}

func (t *Tree) deliver(records []Record) {
	if len(records) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.emit(records)
}

// rootsGone reports whether no group has a root left.
func (t *Tree) rootsGone() bool {
	for _, g := range t.groups {
		if !g.allGone.Load() {
			return false
		}
	}
	return true
}

// Close ends Run, waits for the watchers and frees everything. Idempotent.
func (t *Tree) Close() error {
	if t.portable != nil {
		return t.portable.Close()
	}
	t.closeOnce.Do(func() {
		var errs []error
		for _, g := range t.groups {
			errs = append(errs, g.w.Close())
		}
		closeRoots(t.roots)
		t.closeErr = errors.Join(errs...)
	})
	return t.closeErr
}
