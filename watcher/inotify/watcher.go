package inotify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher/internal/loop"
	"github.com/heraldfs/heraldfs/watcher/internal/mounts"
)

// bufLen is the size of the read buffer: about 8,000 records.
const bufLen = 256 << 10

// Positioned is what a Ledger may have besides: positions in the byte stream of the queue.
type Positioned interface {
	// Bind hands over a function that returns where the queue ends now; nil
	// takes it back. It is called before the first and after the last record.
	Bind(end func() uint64)
	// At says where the record stood of which Swallow is asked next.
	At(pos uint64)
}

// Options for Open. Root is required.
type Options struct {
	// Root is the directory below which mounts are reported.
	Root string
	// Mask is what is asked for; 0 is notify.DefaultMask.
	Mask notify.Mask
	// Ledger, if not nil, is asked about every record.
	Ledger notify.Ledger
	Logger *slog.Logger
}

// Watcher is a notify.Source and a notify.Marker.
type Watcher struct {
	log    *slog.Logger
	mask   uint32
	fd     int
	loop   *loop.Loop
	ledger Positioned // nil if it does not care
	buf    []byte

	mu      sync.Mutex
	closed  bool
	watches watchTable

	posMu sync.Mutex
	read  uint64 // bytes that were taken off the queue
}

// Open makes the inotify instance. No directory is watched yet, not even Root. The
// length of the queue is fs.inotify.max_queued_events as it is now.
func Open(o Options) (*Watcher, error) {
	abs, err := filepath.Abs(o.Root)
	if err != nil {
		return nil, fmt.Errorf("inotify on %s: %w", o.Root, err)
	}
	root, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return nil, fmt.Errorf("inotify on %s: %w", o.Root, err)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Mask == 0 {
		o.Mask = notify.DefaultMask
	}
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("inotify_init1: %w", err)
	}
	w := &Watcher{log: o.Logger, mask: inMask(o.Mask), fd: fd, buf: make([]byte, bufLen), watches: newWatchTable()}
	table, err := mounts.Open(root)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("inotify on %s: %w", root, err)
	}
	w.loop, err = loop.New(loop.Config{Queue: (*queue)(w), Mounts: table, Ledger: o.Ledger, Logger: o.Logger})
	if err != nil {
		table.Close()
		unix.Close(fd)
		return nil, fmt.Errorf("inotify on %s: %w", root, err)
	}
	if p, ok := o.Ledger.(Positioned); ok {
		w.ledger = p
		p.Bind(w.end)
	}
	return w, nil
}

// Run is notify.Source's.
func (w *Watcher) Run(ctx context.Context, emit func([]notify.Event)) error {
	return w.loop.Run(ctx, emit)
}

// Barrier is notify.Barrier's.
func (w *Watcher) Barrier(ctx context.Context) error { return w.loop.Barrier(ctx) }

// Close is notify.Source's. It waits for Run, so emit must not call it.
func (w *Watcher) Close() error {
	if !w.loop.Close() {
		return nil
	}
	if w.ledger != nil {
		w.ledger.Bind(nil)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.posMu.Lock()
	defer w.posMu.Unlock()
	w.closed = true
	unix.Close(w.fd)
	w.fd = -1
	return nil
}

// end is the position just behind the last queued record.
func (w *Watcher) end() uint64 {
	w.posMu.Lock()
	defer w.posMu.Unlock()
	if w.fd < 0 {
		return w.read
	}
	n, err := unix.IoctlGetInt(w.fd, unix.TIOCINQ)
	if err != nil {
		// FIONREAD (the same number as TIOCINQ) of an inotify descriptor cannot fail; without it nothing is behind what was read.
		w.log.Error("ask for the length of the inotify queue", "error", err)
	}
	return w.read + uint64(n)
}

// queue is the Watcher as the loop sees it.
type queue Watcher

func (q *queue) Fd() int { return q.fd }

// Settled is loop.Settler's.
func (q *queue) Settled() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.watches.settled()
}

func (q *queue) Read(dst []notify.Raw, keep func(*notify.Raw) bool) ([]notify.Raw, bool, error) {
	q.posMu.Lock()
	pos := q.read
	n, err := unix.Read(q.fd, q.buf)
	if n > 0 {
		q.read += uint64(n)
	}
	q.posMu.Unlock()
	switch {
	case errors.Is(err, unix.EAGAIN):
		return dst, true, nil
	case errors.Is(err, unix.EINTR):
		return dst, false, nil
	case err != nil:
		return dst, false, fmt.Errorf("read inotify queue: %w", err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for b := q.buf[:n]; len(b) > 0; {
		at := pos + uint64(n-len(b))
		var ev event
		if ev, b, err = next(b); err != nil {
			return dst, false, err
		}
		r, ok := q.watches.raw(ev)
		if !ok {
			continue
		}
		if r.Mask&notify.MoveSelf != 0 {
			// Nobody is told, so it is no echo of anything.
			dst = append(dst, r)
			continue
		}
		if q.ledger != nil {
			q.ledger.At(at)
		}
		if keep(&r) {
			dst = append(dst, r)
		}
	}
	return dst, false, nil
}

// inMask is the inotify mask that asks for m.
func inMask(m notify.Mask) uint32 {
	const same = notify.Access | notify.Modify | notify.Attrib | notify.CloseWrite | notify.CloseNowrite |
		notify.Open | notify.Create | notify.Delete | notify.DeleteSelf
	f := uint32(m & same)
	if m&(notify.Moves|notify.Rename) != 0 {
		// One half alone could not be told from a move out. MOVE_SELF tells of a marked directory whose
		// parent has changed.
		f |= unix.IN_MOVE | unix.IN_MOVE_SELF
	}
	return f | unix.IN_ONLYDIR
}
