//go:build linux

package watcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher/fanotify"
	"github.com/heraldfs/heraldfs/watcher/inotify"
)

// Options for Open. Root is required.
type Options struct {
	// Root is the directory that is watched.
	Root string
	// Backend is Auto (also ""), Fanotify or Inotify.
	Backend string
	// Mask is what is asked for; 0 is notify.DefaultMask.
	Mask notify.Mask
	// DropPid is a thread group whose changes are ours: its events are dropped before they are
	// coalesced. 0 is none. Backends without a pid ignore it.
	DropPid int
	// Ledger swallows echoes where there is no pid; nil swallows nothing. With fanotify it is
	// asked too, for changes that are made for us under another pid.
	Ledger notify.Ledger
	// Logger is told what was chosen and why; nil is silent.
	Logger *slog.Logger
	// LimitedQueue bounds fanotify's queue as the sysctl says, so that tests can
	// overflow it.
	LimitedQueue bool
	// Dropping says that privileges are given up after Open. What is mounted later is then heard of by its marked directories:
	// there is a Marker, also for fanotify.
	Dropping bool
	// ForceInodeMarks makes fanotify do without filesystem marks.
	ForceInodeMarks bool
}

// Watcher is an open Source.
type Watcher struct {
	notify.Source
	// Backend is Fanotify, FanotifyInode or Inotify.
	Backend string
	// Why says what made the choice.
	Why string
	// Marker is nil if every change at and below Root is heard of without.
	Marker notify.Marker
	// HasPid says whether events tell who did it.
	HasPid bool
}

// Unheard has what is done to file contents through the mount of the directory fd passed over, whoever does it. It wraps
// notify.ErrNotSupported where the backend cannot tell mounts apart.
func (w *Watcher) Unheard(fd int) error {
	if u, ok := w.Source.(interface{ Unheard(int) error }); ok {
		return u.Unheard(fd)
	}
	return fmt.Errorf("pass over a mount: %w by backend %s", notify.ErrNotSupported, w.Backend)
}

// Barrier is notify.Barrier's; every backend of Open has it.
func (w *Watcher) Barrier(ctx context.Context) error {
	b, ok := w.Source.(notify.Barrier)
	if !ok {
		return fmt.Errorf("barrier: %w by backend %s", notify.ErrNotSupported, w.Backend)
	}
	return b.Barrier(ctx)
}

// Open starts watching. Events are read by Run; what happens after Open (or after
// Mark, where there is a Marker) is not missed.
func Open(o Options) (*Watcher, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	w, err := open(o)
	if err != nil {
		return nil, err
	}
	o.Logger.Info("watcher chosen", "backend", w.Backend, "why", w.Why, "root", o.Root)
	return w, nil
}

func open(o Options) (*Watcher, error) {
	switch o.Backend {
	case Fanotify:
		return openFanotify(o)
	case Inotify:
		return openInotify(o, "asked for")
	case Auto, "":
		w, err := openFanotify(o)
		if err == nil || !errors.Is(err, notify.ErrNotSupported) {
			return w, err
		}
		return openInotify(o, err.Error())
	}
	return nil, fmt.Errorf("watcher backend %q: %w", o.Backend, notify.ErrNotSupported)
}

func openFanotify(o Options) (*Watcher, error) {
	f, err := fanotify.Open(fanotify.Options{
		Root: o.Root, Mask: o.Mask, DropPid: o.DropPid, Ledger: o.Ledger, Logger: o.Logger,
		LimitedQueue: o.LimitedQueue, InodeMarks: o.ForceInodeMarks, Dropping: o.Dropping,
	})
	if err != nil {
		return nil, err
	}
	w := &Watcher{Source: f, Backend: Fanotify, Why: "filesystem marks work on every file system", HasPid: true}
	if f.InodeMarks() {
		w.Backend, w.Why, w.Marker = FanotifyInode, "inode marks asked for", f
		switch err := f.Refused(); {
		case err != nil:
			w.Why = err.Error()
		case o.Dropping && !o.ForceInodeMarks:
			w.Backend, w.Why = Fanotify, "filesystem marks for what is mounted now, inode marks for what comes"
		}
	}
	return w, nil
}

func openInotify(o Options, why string) (*Watcher, error) {
	i, err := inotify.Open(inotify.Options{Root: o.Root, Mask: o.Mask, Ledger: o.Ledger, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	return &Watcher{Source: i, Backend: Inotify, Why: why, Marker: i}, nil
}
