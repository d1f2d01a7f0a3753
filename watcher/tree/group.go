//go:build linux

package tree

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher"
)

// maxEarly bounds the events that come while the roots are walked.
const maxEarly = 1 << 20

// group is one watcher with its roots.
type group struct {
	tree   *Tree
	w      *watcher.Watcher
	fs     uint64
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	e       *engine
	disk    *disk
	records []Record
	started bool
	early   []notify.Event // while not started
	lost    bool           // early was full
	failed  bool
	allGone atomic.Bool

	waits chan struct{} // something waits for a fence
	idle  *sync.Cond    // with mu: nothing waits, or failed
}

func newGroup(t *Tree, w *watcher.Watcher, fs uint64, o *Options) *group {
	g := &group{tree: t, w: w, fs: fs, disk: &disk{}, waits: make(chan struct{}, 1)}
	g.idle = sync.NewCond(&g.mu)
	g.e = newEngine(g.disk, w.Marker, o.NoRecursive, o.MaxDirs, o.Logger)
	g.e.setIgnore(o)
	g.e.emit = func(r Record) { g.records = append(g.records, r) }
	return g
}

func newEngine(h host, m notify.Marker, shallow bool, maxDirs int, log *slog.Logger) *engine {
	if maxDirs <= 0 {
		maxDirs = defaultMaxDirs
	}
	return &engine{
		tab: newTable(shallow), host: h, marker: m, maxDirs: maxDirs,
		scanner: &scanner{marker: m, deny: func(path string, err error) {
			log.Warn("cannot watch directory", "path", path, "error", err)
		}},
		nested: make(map[entryKey]*scan), unmarked: make(map[*node]struct{}), gone: make(map[int]bool),
		left: make(map[notify.Object]struct{}),
	}
}

// add is called before Run only.
func (g *group) add(index int, r *rootDir) {
	g.e.tab.addRoot(r.obj, index, r.file)
	for len(g.disk.roots) <= index {
		g.disk.roots = append(g.disk.roots, rootDir{fd: -1})
	}
	g.disk.roots[index] = *r
}

// walk marks and lists the roots. The watcher runs meanwhile, so that its queue does not fill.
func (g *group) walk(ctx context.Context) error {
	if g.w.Marker == nil {
		return nil
	}
	scans := make(map[*node]*scan)
	for i := range g.disk.roots {
		r := &g.disk.roots[i]
		n := g.e.tab.nodes[r.obj]
		if r.fd < 0 || n == nil {
			continue
		}
		if g.e.tab.shallow || n.root < 0 {
			if err := g.w.Marker.Mark(r.obj, r.fd); err != nil {
				return fmt.Errorf("watch %s: %w", r.path, err)
			}
			continue
		}
		fd, err := g.disk.openPath(i, "")
		if err != nil {
			return fmt.Errorf("watch %s: %w", r.path, err)
		}
		sc, err := g.e.scanner.run(ctx, fd, r.path, scanScope{scope: g.e.tab.scope, files: g.e.tab.load != nil})
		if err != nil {
			return err
		}
		scans[n] = sc
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for n, sc := range scans {
		if !sc.vanished {
			g.e.plant(n, sc)
		}
	}
	return nil
}

// start processes what came during the walk.
func (g *group) start() {
	g.mu.Lock()
	defer g.mu.Unlock()
	early := g.early
	g.early, g.started = nil, true
	if g.lost {
		early = []notify.Event{{Op: notify.OpOverflow, Time: time.Now()}}
	}
	g.doneLocked(g.e.feed(early))
}

// heard is called by the watcher.
func (g *group) heard(batch []notify.Event) {
	if len(batch) == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.failed:
	case g.started:
		g.doneLocked(g.e.feed(batch))
	case g.lost:
	case len(g.early)+len(batch) > maxEarly:
		g.early, g.lost = nil, true
	default:
		g.early = append(g.early, batch...)
	}
}

// rootCheck is how often roots are looked after, see watchRoots.
const rootCheck = 500 * time.Millisecond

// watchRoots finds out that a root was deleted. With a Marker no event tells it: only the parent,
// which is not marked, hears of it at once, and the DELETE_SELF of the root
// waits for the descriptor that we keep of it.
func (g *group) watchRoots(ctx context.Context) {
	if g.w.Marker == nil {
		return
	}
	tick := time.NewTicker(rootCheck)
	defer tick.Stop()
	roots := g.disk.roots
	for len(roots) > 0 {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		left := roots[:0:0]
		for _, r := range roots {
			var st unix.Stat_t
			switch {
			case r.fd < 0 || r.file != "":
			case unix.Fstat(r.fd, &st) == nil && st.Nlink == 0:
				// What happened in it before comes first.
				if g.w.Barrier(ctx) == nil {
					g.heard([]notify.Event{{Op: notify.OpDeleteSelf, IsDir: true, Object: r.obj, Time: time.Now()}})
				}
			default:
				left = append(left, r)
			}
		}
		roots = left
	}
}

// doneLocked delivers what the engine made, and sees to what it needs.
func (g *group) doneLocked(err error) {
	g.tree.deliver(g.records)
	clear(g.records)
	g.records = g.records[:0]
	if err == nil && g.e.allGone() {
		g.allGone.Store(true)
		if g.tree.rootsGone() {
			err = ErrRootGone
		}
	}
	if err != nil {
		g.failed = true
		g.idle.Broadcast()
		g.cancel(err)
		return
	}
	if g.e.waiting() {
		select {
		case g.waits <- struct{}{}:
		default:
		}
	} else {
		g.idle.Broadcast()
	}
}

// fail ends what waits for the engine.
func (g *group) fail() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.failed = true
	g.idle.Broadcast()
}

// barrier returns when everything that was queued before the call was delivered.
func (g *group) barrier(ctx context.Context) error {
	if err := g.w.Barrier(ctx); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.idle.Broadcast()
	})
	defer stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.failed && ctx.Err() == nil && (!g.started || g.e.waiting()) {
		g.idle.Wait()
	}
	if g.failed {
		return notify.ErrClosed
	}
	return ctx.Err()
}

// fences lets the queue be read to its end whenever the engine waits for that.
func (g *group) fences(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.waits:
		}
		g.mu.Lock()
		waiting := g.e.waiting() && !g.failed
		g.e.arm()
		g.mu.Unlock()
		if !waiting {
			continue
		}
		if err := g.w.Barrier(ctx); err != nil {
			return // the watcher ends, and says why
		}
		g.mu.Lock()
		if !g.failed {
			g.doneLocked(g.e.passed())
		}
		g.mu.Unlock()
	}
}
