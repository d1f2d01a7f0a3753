package guest

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/server/passthrough"
)

const (
	// pruneBatch is how many inodes the kernel is asked to let go of at a time, and pruneGrace, how long its FORGETs
	// are waited for: without, more would be asked for than is needed.
	pruneBatch = 1024
	pruneGrace = 5 * time.Millisecond
	// What is in use stays. After a round that freed too little nothing is tried for minRest, twice as long
	// each time, up to maxRest.
	minRest = time.Second
	maxRest = time.Minute
)

// bound keeps what the guest's kernel knows below a number, by asking it to let go of what nobody uses. It
// has a goroutine of its own: the kernel may have to wait for answers of ours meanwhile.
type bound struct {
	max    int
	fs     *passthrough.FS
	prune  func(nodeids ...uint64) error
	log    *slog.Logger
	pruned atomic.Uint64

	crowded <-chan struct{}
	warned  bool
}

func (b *bound) run(ctx context.Context) {
	rest := minRest
	for {
		if b.fs.Nodes() <= b.max {
			select {
			case <-b.crowded:
			case <-ctx.Done():
				return
			}
		}
		err := b.round(ctx)
		switch {
		case errors.Is(err, notify.ErrNotSupported):
			b.log.Warn("this kernel cannot be asked to let go of files: their number is not bounded", "error", err)
			return
		case err != nil:
			b.log.Debug("pruning has failed", "error", err)
		case b.fs.Nodes() <= b.max:
			rest = minRest
			continue
		case !b.warned:
			b.warned = true
			b.log.Warn("more files than the bound are in use", "known", b.fs.Nodes(), "bound", b.max)
		}
		if !pause(ctx, rest) {
			return
		}
		rest = min(2*rest, maxRest)
	}
}

// round asks for what has been known for longest first, until a tenth of the bound is free or everything was
// asked for once.
func (b *bound) round(ctx context.Context) error {
	target := b.max - b.max/10
	var ids []uint64
	for after := uint64(0); ; {
		excess := b.fs.Nodes() - target
		if excess <= 0 {
			return nil
		}
		ids = b.fs.Oldest(ids[:0], after, min(excess, pruneBatch))
		if len(ids) == 0 {
			return nil
		}
		after = ids[len(ids)-1]
		// A directory that was looked up for what is below it can go only after that.
		slices.Reverse(ids)
		if err := b.prune(ids...); err != nil {
			return err
		}
		if !pause(ctx, pruneGrace) {
			return nil
		}
		for _, id := range ids {
			if _, known := b.fs.Object(id); !known {
				b.pruned.Add(1)
			}
		}
	}
}

// pause reports whether ctx has not ended meanwhile.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
