// Package guest puts a guest mount together: the passthrough file system, its
// device connection, and the replay of host events.
//
// # Life cycle
//
//	Mount: file system, mount(2)
//	Run:   serve -> INIT answered -> private root -> replayer started -> Ready
//	       ... until ctx ends, somebody unmounts, or a part fails
//	       -> replayer ended, its descriptors closed -> unmounted -> served to the end
//
// A replayer that fails takes the mount with it: caches without a time limit and
// without events would be silently wrong.
package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/replay"
	"github.com/heraldfs/heraldfs/server/foreign"
	"github.com/heraldfs/heraldfs/server/fusedev"
	"github.com/heraldfs/heraldfs/server/passthrough"
)

// Default cache times: with events pushed they only bound what a bug could
// do; without, they are what other passthrough file systems use.
const (
	NotifyCache = time.Hour
	PlainCache  = time.Second
)

// readAheadKB lets a file that is read in sequence come in as few large requests: as large as one can be.
const readAheadKB = 1024

// Options say what to mount where. Source and Mountpoint are required.
type Options struct {
	Source, Mountpoint string
	// Events is the host's event stream; nil mounts a plain passthrough.
	Events notify.Source
	// Marker is told which directories the guest knows, where Events needs that.
	Marker notify.Marker
	// Ledger is told what the mount does to Source, where Events has no pid.
	Ledger notify.Ledger
	// Bounded says that Events can overflow.
	Bounded bool
	// Share, if not nil, is Events for a Source that is a mount of somebody else's; Marker, Ledger and
	// Bounded are not used then.
	Share *foreign.Share
	// Mask is what the guest's watchers hear; 0 is notify.DefaultMask.
	Mask notify.Mask
	// CacheTimeout is how long the guest's kernel may keep entries and attributes; 0
	// is NotifyCache or PlainCache.
	CacheTimeout time.Duration
	FileHandles  passthrough.HandleMode
	// NoOpen has the guest's kernel open files without a request; see passthrough.Options. It
	// needs Events of a whole file system (no Marker), and root.
	NoOpen bool
	// Passthrough has the guest's kernel read large files by itself; see passthrough.Options.Backing. With Events it
	// is done where Unheard works, and never with NoOpen or Share. It needs root.
	Passthrough bool
	// PassthroughMin is the size of a large file, in bytes; 0 is passthrough's default.
	PassthroughMin int64
	// Unheard is passthrough.Options', for Events.
	Unheard func(fd int) error
	// MaxNodes bounds how many files the guest's kernel knows that it does not use; 0 is no bound.
	MaxNodes int
	// Device says how to mount; its Fuse field is filled here.
	Device fusedev.Options
	Logger *slog.Logger
}

// Guest is a guest mount.
type Guest struct {
	opts   Options
	fs     *passthrough.FS
	replay *replay.FS
	tree   replay.Tree
	conn   *fusedev.Conn
	bound  *bound // nil without
	log    *slog.Logger

	ready     chan struct{}
	readyOnce sync.Once
}

// lateObserver lets the passthrough file system be made before what observes it.
type lateObserver struct{ passthrough.Observer }

// lateBacking is the connection, which is made after the file system and before its first request.
type lateBacking struct{ *fusedev.Conn }

// StaleAttr implements passthrough.Backing.
func (b *lateBacking) StaleAttr(nodeid uint64) {
	_ = b.Notify().InvalInode(nodeid, -1, 0) // ENOENT: it is known no more
}

// passes reports whether passthrough may be tried.
func (o *Options) passes() bool {
	return o.Passthrough && !o.NoOpen && o.Share == nil && (o.Events == nil || o.Unheard != nil) && os.Geteuid() == 0
}

// Mount makes the mount; requests wait until Run.
func Mount(o Options) (*Guest, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Share != nil {
		o.Events, o.Ledger, o.Marker, o.Bounded = o.Share, o.Share, nil, true
	}
	if o.CacheTimeout == 0 {
		o.CacheTimeout = PlainCache
		if o.Events != nil {
			o.CacheTimeout = NotifyCache
		}
	}
	late := &lateObserver{}
	backing := &lateBacking{}
	pass := passthrough.Options{
		FileHandles: o.FileHandles, EntryTimeout: o.CacheTimeout, AttrTimeout: o.CacheTimeout,
		NegativeTimeout: o.CacheTimeout, ReadOnly: o.Device.ReadOnly, NoOpendir: o.Events != nil,
		NoOpen: o.NoOpen, KeepCache: o.Events != nil, Ledger: o.Ledger, Marker: o.Marker, Observer: late, Logger: o.Logger,
		Foreign: o.Share != nil,
	}
	if o.passes() {
		pass.Backing, pass.PassthroughMin, pass.Unheard = backing, o.PassthroughMin, o.Unheard
	}
	fs, err := passthrough.New(o.Source, pass)
	if err != nil {
		return nil, err
	}
	g := &Guest{opts: o, fs: fs, replay: replay.NewFS(fs), log: o.Logger, ready: make(chan struct{})}
	late.Observer = g.replay
	if o.NoOpen {
		g.replay.WithoutOpen()
	}
	g.tree = fs
	if o.Share != nil {
		g.tree = o.Share.Attach(fs)
	}
	dev := o.Device
	dev.Fuse = fs.MountOptions()
	if os.Geteuid() != 0 && !dev.AllowOther && !dev.DefaultPermissions {
		// POSIX ACLs make the kernel check permissions, and then the replayer could not repeat what another user
		// did to files of his. Only our own user can enter here: the host's checks are enough.
		dev.Fuse.EnableAcl = false
	}
	if dev.ReadAheadKB == 0 {
		dev.ReadAheadKB = readAheadKB
	}
	dev.Logger = o.Logger
	if g.conn, err = fusedev.Mount(o.Mountpoint, g.replay, dev); err != nil {
		return nil, errors.Join(err, fs.Close())
	}
	backing.Conn = g.conn
	if o.MaxNodes > 0 {
		g.bound = &bound{max: o.MaxNodes, fs: fs, prune: g.conn.Notify().Prune, log: o.Logger, crowded: fs.Crowded(o.MaxNodes)}
	}
	// Should the mount lie below SOURCE, looking into it would wait for ourselves.
	fs.Exclude(unix.Mkdev(0, g.conn.Device()))
	return g, nil
}

// Ready is closed when the mount can be used and no later change is missed.
func (g *Guest) Ready() <-chan struct{} { return g.ready }

// Stats returns the replay's live counters.
func (g *Guest) Stats() *replay.Stats { return g.replay.Stats() }

// Requests returns how many FUSE requests came, by opcode.
func (g *Guest) Requests() map[string]uint64 { return g.conn.Requests() }

// Known returns how many inodes the guest's kernel holds.
func (g *Guest) Known() int { return g.replay.Known() }

// OverIOURing reports whether requests come by FUSE over io_uring, once it is ready.
func (g *Guest) OverIOURing() bool {
	select {
	case <-g.Ready():
		return g.conn.OverIOURing()
	default:
		return false
	}
}

// Passed counts the opens of files that the guest's kernel reads by itself.
func (g *Guest) Passed() uint64 { return g.fs.Passed() }

// Pruned counts the inodes that the guest's kernel let go of because of MaxNodes.
func (g *Guest) Pruned() uint64 {
	if g.bound == nil {
		return 0
	}
	return g.bound.pruned.Load()
}

// SetStatus has describe answer for replay.StatusAttr.
func (g *Guest) SetStatus(describe func() []byte) { g.replay.SetStatus(describe) }

// Close ends a mount that Run was not called for.
func (g *Guest) Close() error { return errors.Join(g.conn.Close(), g.fs.Close()) }

// Run serves until ctx ends or somebody unmounts; both are no error.
func (g *Guest) Run(ctx context.Context) error {
	served := make(chan error, 1)
	serveCtx, stopServing := context.WithCancel(context.Background())
	defer stopServing()
	go func() { served <- g.conn.Serve(serveCtx) }()
	stopPruning := g.startPruning(serveCtx)
	err := g.follow(ctx)
	stopPruning()
	if err != nil && g.gone(err) {
		// What fails because somebody unmounted is no error; what Serve returns tells the rest.
		g.log.Debug("ended with the mount", slog.Any("reason", err))
		err = nil
	}
	if uerr := g.conn.Close(); uerr != nil && !errors.Is(uerr, notify.ErrClosed) {
		err = errors.Join(err, fmt.Errorf("unmount %s: %w", g.opts.Mountpoint, uerr))
	}
	stopServing()
	return errors.Join(err, <-served, g.fs.Close())
}

// startPruning keeps the bound, if there is one, until stop is called.
func (g *Guest) startPruning(ctx context.Context) (stop func()) {
	if g.bound == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.bound.run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// gone reports whether the mount had ended when err came up.
func (g *Guest) gone(err error) bool {
	select {
	case <-g.conn.Unmounted():
		return true
	default:
		// An umount can be faster than the news of it.
		return errors.Is(err, notify.ErrClosed) || !g.conn.Mounted()
	}
}

// follow replays events until there is a reason to stop.
func (g *Guest) follow(ctx context.Context) error {
	if err := g.conn.WaitReady(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if g.opts.Events == nil {
		g.readyOnce.Do(func() { close(g.ready) })
		select {
		case <-ctx.Done():
		case <-g.conn.Unmounted():
		}
		return nil
	}
	cfg := replay.Config{
		FS: g.replay, Tree: g.tree, Notify: g.conn.Notify(), Source: g.opts.Events,
		Mask: g.opts.Mask, Bounded: g.opts.Bounded, Logger: g.log, OpenRoot: g.openRoot,
	}
	cfg.Files, _ = g.opts.Marker.(notify.FileMarker)
	if g.opts.Share != nil {
		cfg.Resolver = g.opts.Share
	}
	root, err := g.conn.PrivateRoot()
	switch {
	case err == nil:
		cfg.Root = root
		defer unix.Close(root)
	case errors.Is(err, notify.ErrNotSupported):
		g.log.Debug("replaying on the visible mount", slog.Any("reason", err))
	default:
		return err
	}
	r, err := replay.New(cfg)
	if err != nil {
		return err
	}
	if s := g.opts.Share; s != nil {
		s.Hook(foreign.Hooks{
			Stale: func() { g.replay.Stale(g.conn.Notify()) }, Caught: r.Sync,
			Cache: g.opts.CacheTimeout, Stats: g.replay.Stats(),
		})
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	select {
	case <-r.Started():
	case err := <-done:
		return err
	}
	if s := g.opts.Share; s != nil {
		select {
		case <-s.First():
		case err := <-done:
			return err
		}
	}
	g.readyOnce.Do(func() { close(g.ready) })
	select {
	case <-ctx.Done():
	case <-g.conn.Unmounted():
	case err := <-done:
		if err == nil {
			err = errors.New("the event stream ended")
		}
		return err
	}
	cancel()
	return <-done
}

// openRoot opens the visible mount for a moment.
func (g *Guest) openRoot() (int, error) {
	return unix.Open(g.conn.Mountpoint(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}
