// Package loop turns one kernel notification queue into batches of Events; the
// fanotify and inotify backends differ only in the Queue that they hand it.
//
// One turn of the loop reads the queue to its end (or to a limit), drops what
// is ours, has the rest coalesced, stamps it and emits it. Between turns the
// goroutine sleeps in ppoll(2) on the queue, the mount table and an eventfd: a
// plain blocking call wakes sooner than Go's network poller, and ppoll takes the
// coalescer's deadline in nanoseconds.
//
// While the process itself changes the tree, as a mount does for its guest, most records are its own. A wake for
// each of them would cost more than the change. So after a turn that found nothing else
// the queue is left alone for a while, which grows as long as there is nothing else; a barrier does not wait for that.
//
// # Deadlocks
//
// Close waits for Run, so emit must not call Close.
package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/coalesce"
	"github.com/heraldfs/heraldfs/watcher/internal/mounts"
)

// maxBatch bounds how many records one turn takes before it emits.
const maxBatch = 64 << 10

// A change by others can go unread because of our own for firstPause, and for longestPause when all that came
// lately was ours.
const (
	firstPause   = 200 * time.Microsecond
	longestPause = 8 * firstPause
)

// Queue is a kernel notification queue.
type Queue interface {
	// Fd is readable when Read has something to give.
	Fd() int
	// Read takes what one read(2) gives and appends the records that keep accepts. It does not
	// block; empty says that nothing was left.
	Read(dst []notify.Raw, keep func(*notify.Raw) bool) (raws []notify.Raw, empty bool, err error)
}

// Settler is a Queue that is told when all that it gave has been told, and nothing is held back.
type Settler interface {
	Settled()
}

// Config says what a Loop reads. Queue is required.
type Config struct {
	Queue Queue
	// Mounts, if not nil, is watched; the Loop owns it.
	Mounts *mounts.Table
	// OnMount is called for each new mount before its event is emitted.
	OnMount func(mounts.Mount)
	// DropPid is a thread group whose records are dropped; 0 is none.
	DropPid int
	Ledger  notify.Ledger
	Logger  *slog.Logger
}

// Loop runs one queue.
type Loop struct {
	cfg       Config
	wakeFd    int
	coalescer *coalesce.Coalescer
	keep      func(*notify.Raw) bool
	seen      int           // records of this turn, kept or not
	pause     time.Duration // how long the queue is left alone, since all records of the last turn were ours
	seq       uint64
	owed      bool // something was read since emit last heard of the queue's end
	mountsDue bool

	barriers barriers

	mu      sync.Mutex
	closed  bool
	running bool
	done    chan struct{} // closed by Run when it returns; nil before
}

// New makes a Loop. On success it owns cfg.Mounts.
func New(cfg Config) (*Loop, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Loop{cfg: cfg, wakeFd: fd, coalescer: coalesce.New(coalesce.Config{})}
	l.keep = func(r *notify.Raw) bool {
		l.seen++
		if cfg.DropPid != 0 && int(r.Pid) == cfg.DropPid {
			return false
		}
		return cfg.Ledger == nil || !cfg.Ledger.Swallow(r)
	}
	return l, nil
}

// Run is notify.Source's.
func (l *Loop) Run(ctx context.Context, emit func([]notify.Event)) error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	if l.running {
		l.mu.Unlock()
		return errors.New("watcher: Run called twice at once")
	}
	l.running = true
	done := make(chan struct{})
	l.done = done
	l.mu.Unlock()
	l.barriers.start()
	stop := context.AfterFunc(ctx, l.Wake)
	defer func() {
		stop()
		l.mu.Lock()
		l.running = false
		l.mu.Unlock()
		l.barriers.end()
		close(done)
	}()

	var raws []notify.Raw
	var events []notify.Event
	for ctx.Err() == nil && !l.isClosed() {
		var empty bool
		var err error
		l.barriers.begin()
		raws, events, empty, err = l.turn(raws[:0], events[:0])
		if err != nil {
			return err
		}
		if len(events) > 0 || (empty && l.owed) {
			emit(events)
		}
		if empty && l.coalescer.Deadline().IsZero() {
			if l.barriers.reached() {
				l.coalescer.Settled()
			}
		}
		if !empty {
			continue
		}
		l.owed = false
		if err := l.wait(); err != nil {
			return err
		}
	}
	return nil
}

// turn reads the queue to its end or to maxBatch.
func (l *Loop) turn(raws []notify.Raw, events []notify.Event) ([]notify.Raw, []notify.Event, bool, error) {
	var ticket uint64
	if l.cfg.Ledger != nil {
		ticket = l.cfg.Ledger.BeginRead()
	}
	l.seen = 0
	empty := false
	for !empty && l.seen < maxBatch {
		var err error
		raws, empty, err = l.cfg.Queue.Read(raws, l.keep)
		if err != nil {
			return raws, events, false, err
		}
	}
	if empty {
		var err error
		if raws, empty, err = l.whole(raws); err != nil {
			return raws, events, false, err
		}
	}
	now := time.Now()
	if len(raws) > 0 {
		l.owed = true
	}
	if l.seen > 0 && len(raws) == 0 {
		l.pause = min(max(2*l.pause, firstPause), longestPause)
	} else {
		l.pause = 0
	}
	if empty && l.cfg.Ledger != nil {
		l.cfg.Ledger.Drained(ticket)
	}
	if len(raws) > 0 {
		events = l.coalescer.Push(events, raws, now)
	}
	if d := l.coalescer.Deadline(); !d.IsZero() && !now.Before(d) {
		events = l.coalescer.Flush(events, now)
	}
	if s, ok := l.cfg.Queue.(Settler); ok && l.coalescer.Deadline().IsZero() {
		s.Settled()
	}
	if l.mountsDue {
		l.mountsDue = false
		events = l.refreshMounts(events)
	}
	for i := range events {
		l.seq++
		events[i].Seq, events[i].Time = l.seq, now
	}
	// Names must not outlive their batch in the reused array.
	clear(raws)
	return raws, events, empty, nil
}

func (l *Loop) refreshMounts(events []notify.Event) []notify.Event {
	added, gone, err := l.cfg.Mounts.Refresh()
	if err != nil {
		l.cfg.Logger.Warn("cannot read the mount table", "error", err)
		return append(events, notify.Event{Op: notify.OpOverflow})
	}
	for _, m := range gone {
		events = append(events, notify.Event{Op: notify.OpUnmount, IsDir: true, Dir: m.Dir, Name: m.Name})
	}
	for _, m := range added {
		if l.cfg.OnMount != nil {
			l.cfg.OnMount(m)
		}
		events = append(events, notify.Event{Op: notify.OpMount, IsDir: true, Dir: m.Dir, Name: m.Name})
	}
	return events
}

// wait sleeps until there is something to do.
func (l *Loop) wait() error {
	var timeout *unix.Timespec
	if d := l.coalescer.Deadline(); !d.IsZero() {
		ts := unix.NsecToTimespec(max(0, time.Until(d).Nanoseconds()))
		timeout = &ts
	}
	fds := [3]unix.PollFd{
		{Fd: int32(l.cfg.Queue.Fd()), Events: unix.POLLIN},
		{Fd: int32(l.wakeFd), Events: unix.POLLIN},
		{Fd: -1, Events: unix.POLLPRI},
	}
	if l.pause > 0 && l.cfg.DropPid != 0 && timeout == nil {
		fds[0].Fd = -1
		ts := unix.NsecToTimespec(l.pause.Nanoseconds())
		timeout = &ts
	}
	if l.cfg.Mounts != nil {
		fds[2].Fd = int32(l.cfg.Mounts.Fd())
	}
	_, err := unix.Ppoll(fds[:], timeout, nil)
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ppoll: %w", err)
	}
	if fds[1].Revents != 0 {
		var b [8]byte
		// EAGAIN: somebody else's wake was taken already.
		_, _ = unix.Read(l.wakeFd, b[:])
	}
	if fds[2].Revents != 0 {
		l.mountsDue = true
	}
	return nil
}

// Wake makes Run take another turn.
func (l *Loop) Wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wakeLocked()
}

func (l *Loop) wakeLocked() {
	if l.wakeFd >= 0 {
		// EAGAIN means that the counter is full: a wake is pending.
		_, _ = unix.Write(l.wakeFd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

func (l *Loop) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// Close ends Run, waits for it and frees the eventfd and the mount table. It reports whether
// this call was the one that closed: the caller then closes the queue.
func (l *Loop) Close() bool {
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	l.wakeLocked()
	done := l.done
	l.mu.Unlock()
	if done != nil {
		<-done
	}
	if !first {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	unix.Close(l.wakeFd)
	l.wakeFd = -1
	if l.cfg.Mounts != nil {
		l.cfg.Mounts.Close()
	}
	return true
}
