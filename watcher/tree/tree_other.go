//go:build !linux

package tree

import (
	"context"
	"fmt"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher"
)

// Tree watches some roots.
type Tree struct {
	portable *portableTree
}

// Open gets ready; Run watches the roots.
func Open(o Options) (*Tree, error) {
	if o.Backend != watcher.Portable && o.Backend != watcher.Auto && o.Backend != "" {
		return nil, fmt.Errorf("watcher backend %q: %w: it needs Linux", o.Backend, notify.ErrNotSupported)
	}
	p, err := openPortable(o)
	if err != nil {
		return nil, err
	}
	return &Tree{portable: p}, nil
}

// Backends names the backend of each watcher, and why it was chosen.
func (t *Tree) Backends() (names, why []string) { return t.portable.backends() }

// Run emits Records, the first of which is Ready, until ctx ends or Close is called,
// and then returns nil. emit is called by one goroutine at a time; it may not keep
// the slice.
func (t *Tree) Run(ctx context.Context, emit func([]Record)) error { return t.portable.run(ctx, emit) }

// Barrier returns when every change that was made before the call has been emitted, as far as the
// system keeps an order. It needs Run, and must not be called from its function.
func (t *Tree) Barrier(ctx context.Context) error { return t.portable.Barrier(ctx) }

// Close ends Run, waits for the watcher and frees everything. Idempotent.
func (t *Tree) Close() error { return t.portable.Close() }

// RootObject is zero: directories are known by path.
func (t *Tree) RootObject(int) notify.Object { return notify.Object{} }

// State looks at a path, which is relative to root i as in a Record. No symlink is followed
// at its end.
func (t *Tree) State(i int, path string) State { return t.portable.state(i, path) }
