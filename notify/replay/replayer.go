package replay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/perform"
)

// drainedBatch is the length from which on a batch may be only a part of what the
// source had to read.
const drainedBatch = 1 << 14

// Config says what a Replayer works on. FS, Tree, Source, and Agents or else Notify and one of Root
// and OpenRoot are required.
type Config struct {
	FS     *FS
	Tree   Tree
	Notify Notifier
	Source notify.Source
	// Root is a descriptor of the guest mount's root on a mount of the replayer's
	// own. It stays the caller's.
	Root int
	// OpenRoot, used if Root is zero, opens the visible mount's root. The replayer closes it
	// whenever it has nothing to do, so that the mount is not kept busy.
	OpenRoot func() (int, error)
	// Agents, if not nil, perform the replay in a kernel that takes no notifications. Root,
	// OpenRoot and Notify are not used then, and events that wait for an agent too long are given up
	// for a comparison.
	Agents Agents
	// AbsentCache is how long the guest may cache answers while there is no agent; zero is a second.
	AbsentCache time.Duration
	// Mask is what is delivered; the rest only drops caches. Zero means notify.DefaultMask.
	Mask notify.Mask
	// QueueLimit bounds the events that wait; zero means 262144. When it is
	// reached the kernel's queue takes the rest.
	QueueLimit int
	// GhostLimit bounds the nodes that stand for nothing and that a guest with Agents does not forget; zero means 262144.
	// Past it the agent is left.
	GhostLimit int
	// PairWait is how long an ATTRIB without a name waits for the link or unlink
	// that caused it; zero means two milliseconds.
	PairWait time.Duration
	// Files, if not nil, is asked to watch a file that the guest knows and that has
	// left the known directories. Sources that cover the file system need no such thing.
	Files notify.FileMarker
	// Bounded says that the source's queue can overflow: the names of known
	// directories are remembered, so that what was lost can be made up.
	Bounded bool
	// Resolver is needed by a Source on another machine.
	Resolver Resolver
	Logger   *slog.Logger
}

// Replayer makes the guest's watchers hear the events of a Source.
type Replayer struct {
	cfg   Config
	fs    *FS
	tree  Tree
	hints hinted
	view  *view
	mask  notify.Mask
	stats *Stats
	log   *slog.Logger
	q     *queue
	dirs  *dirCache
	far   *remote
	links linkCounts
	recon reconciler
	opens openFiles
	// closed is empty but for files that are passed through.
	closed closedFiles
	ahead  lookahead
	found  scouts
	held   holding

	// detached says that the agent is gone.
	detached bool

	staged uint64
	// doubt says that resolveDoubt has something to do.
	doubt bool

	// Scratch of the source's thread and of the replayer's.
	drainedAt       time.Time
	places          places
	emitIDs         []uint64
	emitKept        []notify.Event
	emitFound       []finding
	idsA, idsB, idC []uint64

	started chan struct{}
}

// New makes a Replayer; Run starts it and must be called.
func New(cfg Config) (*Replayer, error) {
	if cfg.Mask == 0 {
		cfg.Mask = notify.DefaultMask
	}
	if cfg.QueueLimit == 0 {
		cfg.QueueLimit = 1 << 18
	}
	if cfg.GhostLimit == 0 {
		cfg.GhostLimit = 1 << 18
	}
	if cfg.PairWait == 0 {
		cfg.PairWait = 2 * time.Millisecond
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.AbsentCache == 0 {
		cfg.AbsentCache = time.Second
	}
	q, err := newQueue(cfg.QueueLimit, cfg.Agents != nil)
	if err != nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	r := &Replayer{
		cfg: cfg, fs: cfg.FS, tree: cfg.Tree, view: cfg.FS.view, mask: cfg.Mask,
		stats: &cfg.FS.stats, log: cfg.Logger, q: q,
		dirs: newDirCache(cfg.FS), started: make(chan struct{}),
	}
	r.hints, _ = cfg.Tree.(hinted)
	if cfg.Agents != nil {
		r.cfg.Notify = asker{r}
	}
	r.links.init()
	r.opens.init()
	r.closed = closedFiles{}
	r.drainedAt = time.Now()
	if cfg.Agents == nil {
		r.allowSync()
	}
	return r, nil
}

// allowSync lets the guest wait until everything is told.
func (r *Replayer) allowSync() {
	sync := r.Sync
	r.fs.sync.Store(&sync)
}

// Run reads the source and replays until ctx ends, the source ends or the mount is
// gone. It needs the file system to be served meanwhile.
func (r *Replayer) Run(ctx context.Context) error {
	r.far = &remote{Tree: r.cfg.Tree, raw: r.fs.RawFileSystem, notify: r.cfg.Notify, files: r.cfg.Files, failed: r.refused}
	replay := func() error { return sys.OwnThread(r.thread) }
	if r.cfg.Agents == nil {
		serve, err := newServant()
		if err != nil {
			r.q.abandon()
			r.fs.sync.Store(nil)
			r.q.ready.close()
			return fmt.Errorf("replay: %w", err)
		}
		r.far.serve, r.log = serve, slog.New(remoteLog{r.cfg.Logger.Handler(), serve})
	}
	r.tree = r.far
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if r.cfg.Agents != nil {
		replay = func() error { return r.withAgents(ctx) }
	}
	stop := context.AfterFunc(ctx, r.q.close)
	defer stop()
	if r.cfg.Bounded {
		snaps := newSnapshots(r.cfg.Tree, r.view)
		var listing sync.WaitGroup
		listing.Go(snaps.run)
		defer listing.Wait()
		defer snaps.close()
	}
	sourceErr := make(chan error, 1)
	go func() {
		err := r.cfg.Source.Run(ctx, r.emit)
		r.q.close()
		if r.cfg.Agents != nil {
			cancel() // nobody may be taking from the queue
		}
		sourceErr <- err
	}()
	replayErr := make(chan error, 1)
	go func() { replayErr <- replay() }()
	err := <-replayErr
	r.q.abandon()
	r.far.serve.stop()
	cancel()
	r.cfg.Source.Close()
	if serr := <-sourceErr; serr != nil && err == nil && !errors.Is(serr, notify.ErrClosed) {
		err = fmt.Errorf("replay: source: %w", serr)
	}
	r.fs.sync.Store(nil)
	r.q.ready.close()
	return err
}

// Started is closed when the replayer's thread can take events.
func (r *Replayer) Started() <-chan struct{} { return r.started }

// Deliver implements notify.Delivery, for events that come from elsewhere than the Source.
func (r *Replayer) Deliver(events []notify.Event) error {
	r.stats.Backlog.Add(int64(len(events)))
	return r.q.put(events, nil, false)
}

// Sync implements notify.Delivery.
func (r *Replayer) Sync(ctx context.Context) error {
	if b, ok := r.cfg.Source.(notify.Barrier); ok {
		if err := b.Barrier(ctx); err != nil {
			return err
		}
	}
	w, err := r.q.wait()
	if err != nil {
		return err
	}
	return w.done(ctx)
}

// thread is the replayer: one OS thread whose id the file system knows. What needs the process's
// descriptors goes through the servant from here on.
func (r *Replayer) thread() error {
	var keep []int
	if r.cfg.Root > 0 {
		keep = append(keep, r.cfg.Root)
	}
	switch err := sys.Detach(keep...); {
	case err == nil:
		// Not left to the end of the thread: the process's first thread has none before the
		// process's, and its copy of the root would keep the mount alive.
		for _, fd := range keep {
			defer unix.Close(fd)
		}
	case errors.Is(err, sys.ErrShared):
		r.log.Warn("if the daemon is killed in the middle of a replay, its mount may hang until it is aborted", slog.Any("reason", err))
	default:
		return fmt.Errorf("replay: %w", err)
	}
	r.fs.tid.Store(uint32(unix.Gettid()))
	defer r.fs.tid.Store(0)
	local := perform.NewLocal(r.cfg.Root, SlotLimit)
	defer local.Close()
	defer r.dirs.stop()
	if r.cfg.Root > 0 {
		if err := r.dirs.start(local); err != nil {
			return err
		}
	}
	close(r.started)
	var spare []notify.Event
	for {
		r.far.serve.flush()
		t, ok := r.q.take(spare, r.patience())
		if !ok {
			return nil
		}
		if err := r.batch(&t, local); err != nil {
			return err
		}
		clear(t.events)
		spare = t.events
	}
}

// patience is how long to sleep before there is something to do without an event; zero is for ever.
func (r *Replayer) patience() time.Duration {
	a, b := r.links.timeout(time.Now(), r.cfg.PairWait), r.recon.timeout()
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// batch replays what was taken from the queue.
func (r *Replayer) batch(t *taken, local *perform.Local) (err error) {
	// Last of all: whoever waited may unmount at once.
	defer func() {
		if err != nil {
			tell(t.waiters, notify.ErrClosed)
			return
		}
		if len(t.waiters) > 0 {
			r.far.ready()
		}
		tell(t.waiters, nil)
	}()
	r.stats.stepped(time.Time{})
	defer r.stats.step.Store(0)
	if !r.dirs.started() {
		root, err := r.cfg.OpenRoot()
		if err != nil {
			return fmt.Errorf("replay: open the mount: %w", err)
		}
		defer unix.Close(root)
		local.SetRoot(root)
		if err := r.dirs.start(local); err != nil {
			return err
		}
		defer r.dirs.stop()
	}
	r.ahead.reset(t.events)
	r.found.reset(t.found)
	for i := 0; i < len(t.events); i++ {
		ev := &t.events[i]
		r.stats.Backlog.Add(-1)
		r.ahead.advance(t.events, i)
		r.found.now = i
		remote := ev.Remote != nil && ev.Op != notify.OpOverflow
		if r.recon.lost && remote && r.recon.swallow(r, ev) {
			continue // what it is about cannot be known before the comparison
		}
		if remote && ev.Op != 0 && !r.resolved(ev) {
			continue
		}
		if ev.Op == notify.OpRename {
			r.pairExchange(t, i)
			ev = &t.events[i]
		}
		if ev.Op == 0 {
			continue
		}
		if r.letGo(i) {
			r.stats.stepped(ev.Time)
			continue
		}
		r.found.now = -1
		swallowed, before := r.recon.swallow(r, ev), r.stats.Replayed.Load()
		if !swallowed && remote {
			r.settled(ev)
			if ev.Remote.Found {
				// We may know already, or better.
				r.recon.verify(r, ev)
				swallowed = true
			}
		}
		if !swallowed && !r.detached {
			r.scout(t.events, i)
			if r.held.slot == notify.SlotNone {
				r.hold(t.events, i)
			}
			r.replay(ev)
			if r.held.slot == notify.SlotNone {
				r.held.at = 0
			}
		}
		if r.detached {
			if swallowed || r.stats.Replayed.Load() != before {
				i++ // it was told
			}
			r.putBack(t, i)
			return notify.ErrDetached
		}
		if swallowed {
			continue
		}
		if len(t.events) > burst && (r.ahead.doubtful(ev) || remote && !r.cfg.Resolver.Exact()) {
			r.recon.check(r, ev)
		}
		r.stats.stepped(ev.Time)
	}
	r.found.now = -1
	r.passOver(len(t.events))
	r.links.flush(r, time.Now(), len(t.waiters) > 0)
	r.recon.pause(r, t.idle, len(t.waiters) > 0)
	if t.idle || len(t.waiters) > 0 {
		r.resolveDoubt()
	}
	r.refused(r.dirs.flush())
	if r.detached {
		return notify.ErrDetached
	}
	return nil
}
