package virtiofs

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/heraldfs/heraldfs/server/opcount"
	"github.com/heraldfs/heraldfs/server/turns"
)

// cancelAfter is how long handlers may take to end by themselves before whoever waits for them cancels them.
const cancelAfter = 100 * time.Millisecond

// slowAfter is how often the watchdog looks; a handler that it sees twice is slow.
const slowAfter = time.Millisecond

// NewFS makes the file system of one FUSE session. It is called for each INIT: a mount in
// the guest. OnUnmount is called when the session has ended and no handler runs.
type NewFS func(Guest) (fuse.RawFileSystem, *fuse.MountOptions, error)

// Guest is what is known of a guest that mounts.
type Guest struct {
	// InitFlags are the features that its kernel offers (fuse.CAP_*).
	InitFlags uint64
	// Memory returns how many bytes of memory the guest has. That can change.
	Memory func() uint64
}

// device is the state of one connection.
type device struct {
	opts    *Options
	log     *slog.Logger
	newFS   NewFS
	queues  []*queue
	workers turns.Slots
	lockers turns.Slots // requests that wait for a lock
	watch   *turns.Watchdog
	quit    chan struct{}  // ends watch
	helpers sync.WaitGroup // watch
	buffers sync.Pool      // *[smallReply]byte
	// requests counts; the server's, over connections.
	requests *opcount.Counts

	broken atomic.Bool

	// Of the goroutine that reads messages.
	features uint64
	status   uint8
	mem      *memory
	inflight *inflight

	// mountMu serialises INIT and DESTROY.
	mountMu sync.Mutex
	// memSize is what mem has, for everybody.
	memSize atomic.Uint64
	current atomic.Pointer[session]
}

func newDevice(o *Options, newFS NewFS) *device {
	d := &device{opts: o, log: o.Logger, newFS: newFS, mem: newMemory(nil), requests: o.Requests}
	if d.requests == nil {
		d.requests = &opcount.Counts{}
	}
	d.workers.Max = int64(o.MaxWorkers)
	d.lockers.Max = int64(o.MaxWorkers)
	d.buffers.New = func() any { return new([smallReply]byte) }
	for i := range o.Queues + 1 {
		d.queues = append(d.queues, newQueue(d, i))
	}
	var all []*turns.Turn
	for _, q := range d.queues {
		all = append(all, &q.turn)
	}
	d.watch = turns.NewWatchdog(slowAfter, all, func(i int, turn uint64) { d.queues[i].relieve(turn) })
	d.quit = make(chan struct{})
	d.helpers.Go(func() { d.watch.Run(d.quit) })
	return d
}

func (d *device) session() *session { return d.current.Load() }

func (d *device) swapSession(s *session) *session { return d.current.Swap(s) }

// fail stops the device's queues until the front-end starts them anew.
func (d *device) fail(index int, err error) {
	if !d.broken.CompareAndSwap(false, true) {
		return
	}
	d.log.Error("the device is broken until the guest is reset", "queue", index, "err", err)
	for _, q := range d.queues {
		q.mu.Lock()
		signal(q.errfd)
		q.mu.Unlock()
	}
	if d.opts.OnError != nil {
		d.opts.OnError(fmt.Errorf("queue %d: %w", index, err))
	}
}

func (d *device) waitCancelling(wait func()) {
	waitCancelling(wait, func() { d.session().cancelAll() })
}

// waitCancelling calls wait, and cancel again and again if that takes long.
func waitCancelling(wait, cancel func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait()
	}()
	timer := time.NewTimer(cancelAfter)
	defer timer.Stop()
	for {
		select {
		case <-done:
			return
		case <-timer.C:
			cancel()
			timer.Reset(cancelEvery)
		}
	}
}

// stopQueues stops them all.
func (d *device) stopQueues() {
	for _, q := range d.queues {
		q.stop()
	}
}

func (d *device) anyStarted() bool {
	for _, q := range d.queues {
		q.mu.Lock()
		started := q.started
		q.mu.Unlock()
		if started {
			return true
		}
	}
	return false
}

// endSession ends the FUSE session, if there is one.
func (d *device) endSession() {
	d.mountMu.Lock()
	defer d.mountMu.Unlock()
	d.swapSession(nil).end()
}

// close ends everything, in the order of the lives.
func (d *device) close() {
	d.stopQueues()
	d.endSession()
	close(d.quit)
	d.helpers.Wait()
	for _, q := range d.queues {
		q.setEvent(&q.call, -1)
		q.setEvent(&q.errfd, -1)
	}
	d.inflight.unmap()
	d.inflight = nil
	d.mem.release()
	d.mem = nil
}

// setMemory makes m, whose reference is taken over, the guest's memory.
func (d *device) setMemory(m *memory) error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.remap(m))
	}
	d.mem.release()
	d.mem = m
	d.memSize.Store(m.size())
	return errors.Join(errs...)
}

func (d *device) queue(index uint32) (*queue, error) {
	if int64(index) >= int64(len(d.queues)) {
		return nil, fmt.Errorf("%w: queue %d of %d", ErrProtocol, index, len(d.queues))
	}
	return d.queues[index], nil
}
