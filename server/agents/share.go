package agents

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/replay"
	"github.com/heraldfs/heraldfs/server/passthrough"
)

// Cache times of a Share, if its options name none.
const (
	WithAgent    = time.Hour
	WithoutAgent = time.Second
)

// ShareOptions configure NewShare. Dir, Events and Agents are required.
type ShareOptions struct {
	// Dir is the directory that is shared.
	Dir string
	// Events is what happens in Dir. It is closed with the Share.
	Events notify.Source
	// Marker, Ledger and Bounded are what Events needs, as guest.Options has them.
	Marker  notify.Marker
	Ledger  notify.Ledger
	Bounded bool
	// Mask is what the guest's watchers hear; 0 is notify.DefaultMask.
	Mask notify.Mask
	// Agents are the guest's.
	Agents *Host
	// WithAgent is how long the guest may cache while an agent replays, WithoutAgent while
	// none does; 0 are the constants of these names.
	WithAgent, WithoutAgent time.Duration
	// GhostLimit is replay.Config's.
	GhostLimit int
	Logger     *slog.Logger
}

// Share shows a directory to the guest of one virtual machine, and makes its watchers hear what happens
// there. The guest mounts it as often as it likes, one mount after the other; the directory is watched once for
// all of them.
type Share struct {
	opts ShareOptions
	hub  hub
}

// NewShare makes a Share; Run has to be called.
func NewShare(o ShareOptions) *Share {
	if o.WithAgent == 0 {
		o.WithAgent = WithAgent
	}
	if o.WithoutAgent == 0 {
		o.WithoutAgent = WithoutAgent
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Share{opts: o, hub: hub{source: o.Events}}
}

// Run reads the events and takes agents until ctx ends, which is no error.
func (s *Share) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	agents := make(chan error, 1)
	go func() {
		err := s.opts.Agents.Run(ctx)
		cancel()
		agents <- err
	}()
	err := s.opts.Events.Run(ctx, s.hub.emit)
	if err == nil && ctx.Err() == nil {
		err = errors.New("the event stream ended")
	}
	cancel()
	return errors.Join(err, s.opts.Events.Close(), <-agents)
}

// lateObserver lets the passthrough file system be made before what observes it.
type lateObserver struct{ passthrough.Observer }

// NewFS makes the file system of one FUSE session: of one mount in the guest. o says how to show the
// directory; its timeouts, its caching and whom it tells are set here.
func (s *Share) NewFS(o passthrough.Options) (fuse.RawFileSystem, *fuse.MountOptions, error) {
	late := &lateObserver{}
	o.EntryTimeout, o.AttrTimeout, o.NegativeTimeout = s.opts.WithAgent, s.opts.WithAgent, s.opts.WithAgent
	o.KeepCache, o.NoOpendir = true, true
	o.Marker, o.Ledger, o.Observer = s.opts.Marker, s.opts.Ledger, late
	fs, err := passthrough.New(s.opts.Dir, o)
	if err != nil {
		return nil, nil, err
	}
	front := replay.NewFS(fs)
	late.Observer = front
	cfg := replay.Config{
		FS: front, Tree: fs, Source: s.hub.turn(), Agents: s.opts.Agents, AbsentCache: s.opts.WithoutAgent,
		Mask: s.opts.Mask, Bounded: s.opts.Bounded, GhostLimit: s.opts.GhostLimit, Logger: s.opts.Logger,
	}
	cfg.Files, _ = s.opts.Marker.(notify.FileMarker)
	r, err := replay.New(cfg)
	if err != nil {
		return nil, nil, errors.Join(err, fs.Close())
	}
	mount := fs.MountOptions()
	// The kernel drops pages when it sees another mtime or size, not at our word.
	mount.ExplicitDataCacheControl = false
	ctx, cancel := context.WithCancel(context.Background())
	ss := &session{FS: front, below: fs, cancel: cancel, log: s.opts.Logger}
	ss.replaying.Go(func() {
		if err := r.Run(ctx); err != nil {
			ss.log.Error("replay has ended", "err", err)
		}
	})
	<-r.Started()
	return ss, &mount, nil
}

// session is the file system of one mount in the guest, with its replayer.
type session struct {
	*replay.FS
	below     *passthrough.FS
	cancel    context.CancelFunc
	replaying sync.WaitGroup
	log       *slog.Logger
}

// OnUnmount ends everything.
func (s *session) OnUnmount() {
	s.cancel()
	s.replaying.Wait()
	if err := s.below.Close(); err != nil {
		s.log.Error("closing the file system", "err", err)
	}
}

// hub gives the events of one Source to one Source after the other.
type hub struct {
	source notify.Source

	mu  sync.Mutex // held while events are given away: a Replayer with agents never blocks
	now *turn
}

func (h *hub) emit(events []notify.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.now != nil {
		h.now.emit(events)
	}
}

func (h *hub) turn() *turn { return &turn{hub: h, ended: make(chan struct{})} }

// turn is a notify.Source and notify.Barrier.
type turn struct {
	hub   *hub
	emit  func([]notify.Event)
	once  sync.Once
	ended chan struct{}
}

// Run implements notify.Source.
func (t *turn) Run(ctx context.Context, emit func([]notify.Event)) error {
	t.emit = emit
	t.hub.mu.Lock()
	t.hub.now = t
	t.hub.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-t.ended:
	}
	t.hub.mu.Lock()
	defer t.hub.mu.Unlock()
	if t.hub.now == t {
		t.hub.now = nil
	}
	return nil
}

// Close implements notify.Source. What it reads from stays open.
func (t *turn) Close() error {
	t.once.Do(func() { close(t.ended) })
	return nil
}

// Barrier implements notify.Barrier.
func (t *turn) Barrier(ctx context.Context) error {
	b, ok := t.hub.source.(notify.Barrier)
	if !ok {
		return fmt.Errorf("barrier: %w", notify.ErrNotSupported)
	}
	return b.Barrier(ctx)
}
