package portable

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/heraldfs/heraldfs/internal/ignore"
	"github.com/heraldfs/heraldfs/notify"
)

// ErrRootGone says that every root was a directory that is gone.
var ErrRootGone = errors.New("every root is gone")

const (
	defaultPairWait = 20 * time.Millisecond
	// maxQueue bounds the notifications that wait for Run. When there are more they are given up, as in an overflow.
	maxQueue = 1 << 18
)

// Root is what is watched.
type Root struct {
	// Dir is an absolute path without symlinks.
	Dir string
	// File is the name of a file in Dir: that name alone is watched then.
	File string
}

// Options for Open. Roots is required; no one lies in another one.
type Options struct {
	Roots []Root
	// Shallow watches the entries of the roots only.
	Shallow bool
	// Ignore are patterns of package ignore that come before those of files; NoIgnoreFiles
	// makes ignore.FileName a name like any other.
	Ignore        []string
	NoIgnoreFiles bool
	// PairWait is how long the first half of a rename waits for the second; 0 is 20 milliseconds. On Linux it then waits
	// for all that the kernel had queued by that time.
	PairWait time.Duration
	Logger   *slog.Logger
}

// Watcher is an open watch.
type Watcher struct {
	fs *fsnotify.Watcher
	e  *engine

	mu    sync.Mutex
	queue []hint
	full  bool
	ended bool // by Close or by fsnotify
	ran   bool

	wake     chan struct{} // something is in queue
	barriers chan chan struct{}
	// forgetful is for tests: old names are not looked at.
	forgetful bool
	running   chan struct{} // closed when Run has returned
	closed    chan struct{}
	once      sync.Once
	closeErr  error
}

// Open makes everything ready; Run watches.
func Open(o Options) (*Watcher, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.PairWait <= 0 {
		o.PairWait = defaultPairWait
	}
	dir, err := os.MkdirTemp("", "heraldfs-fence-")
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("make a private directory: %w", err)
	}
	w, err := fsnotify.NewWatcher()
	if err == nil {
		if err = w.Add(dir); err != nil {
			w.Close()
		}
	}
	if err != nil {
		os.Remove(dir)
		return nil, fmt.Errorf("open watcher: %w%s", err, limitAdvice(err))
	}
	e := &engine{watch: w, shallow: o.Shallow, log: o.Logger, noFiles: o.NoIgnoreFiles, wait: o.PairWait,
		sys: systemOf(runtime.GOOS), fenceDir: dir}
	scope := ignore.Top(o.Ignore)
	for i, r := range o.Roots {
		e.addRoot(i, r, scope)
	}
	p := &Watcher{fs: w, e: e, wake: make(chan struct{}, 1), barriers: make(chan chan struct{}),
		running: make(chan struct{}), closed: make(chan struct{})}
	return p, nil
}

func (e *engine) addRoot(i int, r Root, scope *ignore.Scope) {
	var t *top
	for _, other := range e.tops {
		if other.path == r.Dir {
			t = other
		}
	}
	if t == nil {
		t = &top{path: r.Dir, index: -1, node: &node{state: look(r.Dir)}}
		t.node.top = t
		e.tops = append(e.tops, t)
	}
	if r.File == "" {
		t.index, t.scope = i, scope
		return
	}
	if t.files == nil {
		t.files = make(map[string]int)
	}
	t.files[r.File] = i
}

// Run emits Events, of which Ready is the first, until ctx ends or Close is called, and then returns nil. It may
// be called once. emit is not called concurrently, and may not keep the slice.
func (w *Watcher) Run(ctx context.Context, emit func([]Event)) error {
	w.mu.Lock()
	if w.ran || w.ended {
		w.mu.Unlock()
		return fmt.Errorf("run: %w", notify.ErrClosed)
	}
	w.ran = true
	w.mu.Unlock()
	defer close(w.running)
	var drain sync.WaitGroup
	drain.Go(w.drain)
	defer drain.Wait()
	defer w.fs.Close()
	err := w.loop(ctx, emit)
	if errors.Is(err, context.Canceled) || errors.Is(err, notify.ErrClosed) {
		return nil
	}
	return err
}

// drain queues what fsnotify tells, until it is closed.
func (w *Watcher) drain() {
	events, errs := w.fs.Events, w.fs.Errors
	for events != nil || errs != nil {
		select {
		case ev, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			if ev.Op != 0 {
				h := hint{raw: ev.Name, op: ev.Op, at: time.Now()}
				if !w.forgetful {
					h.from = oldName(ev)
				}
				w.push(h)
			}
		case err, ok := <-errs:
			if !ok {
				errs = nil
				continue
			}
			w.e.log.Debug("fsnotify", "err", err)
			// Whatever it was, something may have been missed.
			w.push(hint{lost: true, at: time.Now()})
		}
	}
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	w.signal()
}

func (w *Watcher) push(h hint) {
	w.mu.Lock()
	switch {
	case len(w.queue) < maxQueue:
		w.full = false
		w.queue = append(w.queue, h)
	case !w.full:
		w.full = true
		w.queue = append(w.queue[:0], hint{lost: true, at: h.at})
	}
	w.mu.Unlock()
	w.signal()
}

func (w *Watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *Watcher) take() (ended bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.e.buf = append(w.e.buf, w.queue...)
	clear(w.queue)
	w.queue = w.queue[:0]
	return w.ended
}

// barrier is a call of Barrier.
type barrier struct {
	done  chan struct{}
	fence uint64
}

func (w *Watcher) loop(ctx context.Context, emit func([]Event)) error {
	e := w.e
	var pending []barrier
	for _, t := range e.tops {
		e.list(t.node, func(*node) {})
		if t.node.kids == nil && !look(t.path).exists {
			return fmt.Errorf("watch %s: %w", t.path, os.ErrNotExist)
		}
	}
	e.emit(Event{Kind: Ready, IsDir: true, Path: ".", Time: time.Now()})
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		ended := w.take()
		wait := e.run(time.Now())
		if len(e.out) > 0 {
			emit(e.out)
			clear(e.out)
			e.out = e.out[:0]
		}
		switch {
		case e.failed != nil:
			return e.failed
		case ended:
			return notify.ErrClosed
		case ctx.Err() != nil:
			return ctx.Err()
		}
		if wait == 0 {
			pending = e.answer(pending)
			timer.Stop()
		} else {
			timer.Reset(wait)
		}
		select {
		case <-ctx.Done():
		case <-w.closed:
			return notify.ErrClosed
		case <-w.wake:
		case <-timer.C:
		case done := <-w.barriers:
			e.makeFence()
			pending = append(pending, barrier{done, e.fenceMade})
		}
	}
}

// answer lets those go whose fence has been heard of.
func (e *engine) answer(pending []barrier) []barrier {
	keep := pending[:0]
	for _, b := range pending {
		if b.fence <= e.fenceSeen && len(e.doubts) == 0 && e.trouble == 0 {
			close(b.done)
		} else {
			keep = append(keep, b)
		}
	}
	return keep
}

// Barrier returns when every change that was made before the call has been emitted, as far as the system
// keeps an order. It needs Run, and must not be called from its function.
func (w *Watcher) Barrier(ctx context.Context) error {
	done := make(chan struct{})
	select {
	case w.barriers <- done:
	case <-w.running:
		return notify.ErrClosed
	case <-w.closed:
		return notify.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-w.running:
		return notify.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close ends Run, waits for it, and frees everything. Idempotent.
func (w *Watcher) Close() error {
	w.once.Do(func() {
		close(w.closed)
		w.mu.Lock()
		ran := w.ran
		w.ended = true
		w.mu.Unlock()
		if ran {
			<-w.running
		} else {
			w.closeErr = w.fs.Close()
		}
		if err := os.RemoveAll(w.e.fenceDir); err != nil {
			w.closeErr = errors.Join(w.closeErr, err)
		}
	})
	return w.closeErr
}
