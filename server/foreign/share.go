package foreign

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/replay"
	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/client"
	"github.com/heraldfs/heraldfs/server/passthrough"
)

// Options for New. Dial is required.
type Options struct {
	// Dial, Conn, MinBackoff and MaxBackoff are as in client.Options; a zero MaxBackoff is two seconds. A zero
	// Conn.IdleTimeout is ten: so long the guest may believe what it has cached over a link that is dead without a word.
	Dial                   func(ctx context.Context) (net.Conn, error)
	Conn                   protocol.Options
	MinBackoff, MaxBackoff time.Duration
	// Root is the server's name for the directory, Mask what is asked for.
	Root string
	Mask notify.Mask
	// Origin is the name that the server gives to the file server of SOURCE, "" if none. An
	// event of another known origin is then never taken for an echo.
	Origin string
	// SettleTimeout bounds how long an event waits for SOURCE to show it; 0 is two seconds.
	SettleTimeout time.Duration
	// OfflineCache is how long the guest may keep what it is told without a server; 0 is one second.
	OfflineCache time.Duration
	Logger       *slog.Logger
}

// Share is a subscription to the changes of a foreign mount. It implements notify.Source,
// notify.Barrier, notify.Ledger as far as Expect, and replay.Resolver.
type Share struct {
	opts Options
	log  *slog.Logger

	fs      *passthrough.FS
	objects *objects
	ledger  *ledger
	settler settler
	stats   *replay.Stats

	barriers client.Barriers
	upstream client.Stats
	first    chan struct{} // closed when the first attempt has ended, well or not
	once     sync.Once
	ended    chan struct{} // closed when Run is about to return
	endOnce  sync.Once
	closed   context.CancelFunc
	done     context.Context

	// Hooks of the guest mount, set before Run.
	stale   func()                      // make the guest's kernel ask again
	caught  func(context.Context) error // returns when all is replayed
	keep    time.Duration
	online  atomic.Bool
	session atomic.Uint64 // counts connections and their ends

	// The client's goroutine's own.
	emit  func([]notify.Event)
	buf   []notify.Event
	tried bool // an attempt has ended

	cur current
}

// New returns a Share. Attach must be called before Run.
func New(o Options) *Share {
	if o.SettleTimeout <= 0 {
		o.SettleTimeout = 2 * time.Second
	}
	if o.OfflineCache <= 0 {
		o.OfflineCache = time.Second
	}
	if o.MaxBackoff <= 0 {
		o.MaxBackoff = 2 * time.Second
	}
	if o.Conn.IdleTimeout <= 0 {
		o.Conn.IdleTimeout = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Share{opts: o, log: o.Logger, ledger: newLedger(), first: make(chan struct{}), ended: make(chan struct{})}
	s.done, s.closed = context.WithCancel(context.Background())
	return s
}

// Hooks are what a Share does to its guest mount.
type Hooks struct {
	// Stale makes the guest's kernel ask again for what it has cached.
	Stale func()
	// Caught returns when every event that the server had is replayed.
	Caught func(context.Context) error
	// Cache is how long the guest may keep what it is told while the server tells of changes.
	Cache time.Duration
	Stats *replay.Stats
}

// Attach makes fs the view of the share, and returns the replay's view of fs.
func (s *Share) Attach(fs *passthrough.FS) replay.Tree {
	s.fs = fs
	s.objects = newObjects(fs)
	s.settler.init(s)
	s.timeouts(s.opts.OfflineCache)
	return &tree{FS: fs, share: s}
}

// Hook sets the hooks. Before Run.
func (s *Share) Hook(h Hooks) {
	s.stale, s.caught, s.keep, s.stats = h.Stale, h.Caught, h.Cache, h.Stats
}

// Upstream are the live counters of the subscription.
func (s *Share) Upstream() *client.Stats { return &s.upstream }

// First is closed when the first attempt to connect has ended, well or not.
func (s *Share) First() <-chan struct{} { return s.first }

func (s *Share) timeouts(d time.Duration) {
	// An absence that the guest's kernel remembers cannot be taken back by name, so it is never long.
	s.fs.SetTimeouts(d, d, min(d, s.opts.OfflineCache))
}

// permanentPause is how long to wait after an error that another attempt would not change, once a
// connection stood: whoever runs the server may mend it.
const permanentPause = 10 * time.Second

// Run implements notify.Source. It ends with an error only if the first attempt fails for good.
func (s *Share) Run(ctx context.Context, emit func([]notify.Event)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer s.endOnce.Do(func() { close(s.ended) })
	stop := context.AfterFunc(s.done, cancel)
	defer stop()
	s.emit = emit
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	background.Go(func() { s.forgetEchoes(ctx) })
	h := &handler{Share: s, ctx: ctx, background: &background}
	conn := s.opts.Conn
	conn.Caps = []string{protocol.CapState, protocol.CapBarrier}
	o := client.Options{
		Dial: s.opts.Dial, Conn: conn, MinBackoff: s.opts.MinBackoff, MaxBackoff: s.opts.MaxBackoff, Ping: conn.IdleTimeout / 3, Barriers: &s.barriers, Logger: s.log,
		Subscribe: protocol.Subscribe{Root: s.opts.Root, Mask: s.opts.Mask, Compact: protocol.CompactNever, Window: 256, Origin: s.opts.Origin},
	}
	for {
		o.Since = h.since
		err := client.Run(ctx, o, s.upstream.Count(h))
		if ctx.Err() != nil {
			return nil
		}
		if h.since == nil {
			return err
		}
		s.log.Error("the server refuses us; trying again", "err", err, "retry", permanentPause)
		if err := s.upstream.Count(h).Disconnected(err, permanentPause); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(permanentPause):
		}
	}
}

// Close implements notify.Source.
func (s *Share) Close() error {
	s.closed()
	return nil
}

// Barrier implements notify.Barrier: to the server and back. Without a connection it waits for one.
func (s *Share) Barrier(ctx context.Context) error {
	for {
		asked := time.Now()
		err := s.barriers.Wait(ctx)
		if err == nil {
			s.ledger.passed(asked, time.Now())
		}
		if !errors.Is(err, notify.ErrClosed) {
			return err
		}
		// Run pauses, or has ended.
		select {
		case <-s.ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// handler is the Share as the client sees it.
type handler struct {
	*Share
	ctx        context.Context
	background *sync.WaitGroup
	since      *client.Position
	hostTime   time.Time // of the last event
}

// Connected implements client.Handler.
func (h *handler) Connected(sub *protocol.Subscribed) error {
	s := h.Share
	late := h.since == nil && s.tried
	if h.since == nil {
		h.since = &client.Position{Stream: sub.Stream, Seq: sub.Next - 1}
	}
	if sub.Note != "" {
		s.log.Warn("the server has something to say", "note", sub.Note)
	}
	root, ok := object(&sub.Object)
	s.objects.setRoot(root, ok)
	s.tried = true
	s.once.Do(func() { close(s.first) })
	if late {
		// Nobody has told what happened since the guest may look.
		h.overflow("")
	}
	n := s.session.Add(1)
	h.background.Go(func() {
		err := s.caught(h.ctx)
		if errors.Is(err, notify.ErrNotSupported) {
			s.log.Warn("the server cannot say whether we have caught up: caches stay short", "cache", s.opts.OfflineCache)
		}
		if err != nil || s.session.Load() != n {
			return
		}
		s.timeouts(s.keep)
		if s.session.Load() != n {
			s.timeouts(s.opts.OfflineCache)
			return
		}
		s.online.Store(true)
		s.log.Info("caught up with the server", "cache", s.keep)
	})
	return nil
}

// Disconnected implements client.Handler.
func (h *handler) Disconnected(err error, retry time.Duration) error {
	s := h.Share
	s.session.Add(1)
	s.timeouts(s.opts.OfflineCache)
	if s.online.Swap(false) || !s.tried {
		s.log.Warn("no connection to the server: what the guest knows is asked for again, until there is one", "err", err, "cache", s.opts.OfflineCache)
		s.stale()
	}
	s.tried = true
	s.once.Do(func() { close(s.first) })
	return nil
}

// Events implements client.Handler.
func (h *handler) Events(m *protocol.Events) error {
	now := time.Now()
	h.buf = h.buf[:0]
	for i := range m.Events {
		if ev, ok := convert(&m.Events[i], now); ok {
			h.buf = append(h.buf, ev)
		}
	}
	if len(h.buf) > 0 {
		h.hostTime = h.buf[len(h.buf)-1].Time
		h.emit(h.buf)
		clear(h.buf)
	}
	h.dealt(m.Last)
	return nil
}

// Gap implements client.Handler.
func (h *handler) Gap(g *protocol.Gap) error {
	h.log.Warn("the server does not have every change", "first", g.First, "last", g.Last, "scope", g.Scope, "reason", g.Reason)
	h.ledger.clear()
	h.overflow(g.Scope)
	h.dealt(g.Last)
	return nil
}

func (h *handler) overflow(scope string) {
	// What names stood for is not known any more.
	h.objects.forget()
	h.emit([]notify.Event{{Op: notify.OpOverflow, Time: h.hostTime, Remote: &notify.Remote{DirPath: scope, Arrived: time.Now()}}})
}

func (h *handler) dealt(seq uint64) {
	if h.since != nil {
		h.since.Seq = seq
	}
}

// forgetEchoes asks for barriers as long as something that the guest did may come back, so that the ledger knows
// what cannot come any more, and forgets it some time later.
func (s *Share) forgetEchoes(ctx context.Context) {
	forget := time.NewTimer(echoKeep)
	defer forget.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-forget.C:
		case <-s.ledger.busy:
		}
		for ctx.Err() == nil {
			asked := time.Now()
			err := s.Barrier(ctx)
			if errors.Is(err, notify.ErrNotSupported) && pause(ctx, blindLife) {
				s.ledger.passed(asked, time.Now())
			}
			if s.ledger.quiet(asked) || !pause(ctx, echoPause) {
				break
			}
		}
		s.ledger.expire(time.Now().Add(-echoKeep))
		if s.ledger.len() > 0 {
			forget.Reset(echoKeep)
		}
	}
}

// pause reports whether it was not interrupted.
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

const (
	// echoPause is the least time between two barriers on behalf of the ledger.
	echoPause = 50 * time.Millisecond
	// echoKeep is how long an operation is remembered after its end: events that came in time may still
	// wait for their turn.
	echoKeep = 30 * time.Second
	// blindLife is how long an echo may take where the server has no barriers.
	blindLife = 2 * time.Second
)
