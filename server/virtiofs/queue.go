package virtiofs

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/server/turns"
)

// cancelEvery is how often the handlers that somebody waits for are cancelled
// again: one that had not begun at the first time is missed by it.
const cancelEvery = 20 * time.Millisecond

// queue is one virtqueue.
//
//	idle --SET_VRING_KICK--> started --GET_VRING_BASE: kick closed, role and handlers waited for--> idle
type queue struct {
	dev   *device
	index int

	// turn is odd while the goroutine with the popping role is in a handler.
	turn    turns.Turn
	loops   sync.WaitGroup // goroutines that have or had the role
	running sync.WaitGroup // requests that were popped and not yet used

	mu        sync.Mutex
	started   bool
	enabled   bool
	num       uint32
	addr      vringAddr
	addrSet   bool
	mem       *memory // while started; one reference
	ring      vring
	eventIdx  bool
	armed     bool // the guest was asked to kick
	lastAvail uint16
	usedIdx   uint16
	signalled bool // the guest was called at least once since the start
	busy      []bool
	resubmit  []uint16 // heads that an earlier back-end left unused
	track     *inflightQueue
	kick      *os.File
	call      int // -1 if the front-end polls
	errfd     int // -1 if not given
}

func newQueue(d *device, index int) *queue {
	return &queue{dev: d, index: index, call: -1, errfd: -1}
}

// request is a popped chain.
type request struct {
	chain
	header
	q    *queue
	head uint16
	mem  *memory
	// more says that others waited behind it when it was popped.
	more bool
	// beside says that a goroutine of its own carries it out.
	beside bool
}

// start begins to serve the ring; kick is the queue's from now on, also on error.
func (q *queue) start(mem *memory, kick int, features uint64, track *inflightQueue) error {
	// os.File waits in the runtime's poller, which wants it non-blocking.
	if err := unix.SetNonblock(kick, true); err != nil {
		unix.Close(kick)
		return fmt.Errorf("kick descriptor: %w", err)
	}
	f := os.NewFile(uintptr(kick), "kick")
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		f.Close()
		return fmt.Errorf("%w: kick descriptor cannot be polled: %w", ErrProtocol, err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.startLocked(mem, features, track); err != nil {
		f.Close()
		return err
	}
	q.kick = f
	q.loops.Add(1)
	go q.loop(f)
	return nil
}

func (q *queue) startLocked(mem *memory, features uint64, track *inflightQueue) error {
	if q.started {
		return fmt.Errorf("%w: queue %d is started already", ErrProtocol, q.index)
	}
	if q.num == 0 || !q.addrSet || mem == nil {
		return fmt.Errorf("%w: queue %d is kicked before it is set up", ErrProtocol, q.index)
	}
	ring, err := resolveRing(mem, q.addr, q.num)
	if err != nil {
		return err
	}
	mem.acquire()
	q.mem, q.ring = mem, ring
	q.eventIdx = features&featureEventIdx != 0
	q.signalled, q.armed = false, false
	q.busy = make([]bool, q.num)
	q.resubmit, q.track = nil, track
	err = guard(func() error {
		q.usedIdx = ring.usedIdx()
		if track != nil {
			q.resubmit = track.recover(q.usedIdx)
			q.lastAvail = q.usedIdx + uint16(len(q.resubmit))
		}
		return nil
	})
	if err != nil {
		q.mem.release()
		q.mem, q.ring = nil, vring{}
		return err
	}
	q.started = true
	return nil
}

// remap gives a started queue another memory.
func (q *queue) remap(mem *memory) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.started {
		return nil
	}
	ring, err := resolveRing(mem, q.addr, q.num)
	if err != nil {
		return err
	}
	mem.acquire()
	q.mem.release()
	q.mem, q.ring = mem, ring
	return nil
}

// setAddr is SET_VRING_ADDR; a started ring moves.
func (q *queue) setAddr(a vringAddr) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.started {
		ring, err := resolveRing(q.mem, a, q.num)
		if err != nil {
			return err
		}
		q.ring, q.armed = ring, false
		q.nudgeLocked()
	}
	q.addr, q.addrSet = a, true
	return nil
}

// stop ends the queue and waits for its requests. The ring's next index stays in lastAvail.
func (q *queue) stop() {
	q.mu.Lock()
	started, kick := q.started, q.kick
	q.started, q.kick = false, nil
	q.mu.Unlock()
	if !started {
		return
	}
	// A deadline wakes the reader; closing would do so too, but frees the number under it.
	if err := kick.SetReadDeadline(time.Unix(1, 0)); err != nil {
		q.dev.log.Error("a kick descriptor cannot be interrupted", "queue", q.index, "err", err)
	}
	q.dev.waitCancelling(func() {
		q.loops.Wait()
		q.running.Wait()
	})
	kick.Close()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.mem.release()
	q.mem, q.ring, q.track = nil, vring{}, nil
	// Those that an earlier back-end left and that we have not reached either
	// are available again.
	q.lastAvail -= uint16(len(q.resubmit))
	q.resubmit = nil
}

// enable is SET_VRING_ENABLE. What arrived while the queue was disabled has had its kick, so it gets another one.
func (q *queue) enable(on bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if on && !q.enabled {
		q.nudgeLocked()
	}
	q.enabled = on
}

// nudgeLocked makes a started queue's goroutine look.
func (q *queue) nudgeLocked() {
	if q.kick != nil {
		// A full counter has kicked already.
		_, _ = q.kick.Write(oneBytes())
	}
}

// setEvent replaces the call or the error descriptor.
func (q *queue) setEvent(slot *int, fd int) {
	if fd >= 0 {
		// A blocking write under the queue's lock must not happen. An eventfd allows this.
		_ = unix.SetNonblock(fd, true)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if *slot >= 0 {
		unix.Close(*slot)
	}
	*slot = fd
}

func oneBytes() []byte { return []byte{1, 0, 0, 0, 0, 0, 0, 0} }

// signal adds one to an event descriptor.
func signal(fd int) {
	if fd >= 0 {
		// The only failure is EAGAIN: it is signalled already.
		_, _ = unix.Write(fd, oneBytes())
	}
}

// loop has the popping role until the queue stops or the watchdog takes the role.
func (q *queue) loop(kick *os.File) {
	defer q.loops.Done()
	defer q.catch()
	debug.SetPanicOnFault(true)
	var buf [8]byte
	for {
		if q.drain() {
			return
		}
		if _, err := kick.Read(buf[:]); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				q.dev.fail(q.index, fmt.Errorf("kick descriptor: %w", err))
			}
			return
		}
	}
}

// catch makes a fault in shared memory an error of the device.
func (q *queue) catch() {
	if v := recover(); v != nil {
		q.dev.fail(q.index, faultError(v))
	}
}

// drain serves what is available. It reports true when it has lost the role.
func (q *queue) drain() (relieved bool) {
	d := q.dev
	for {
		r, err := q.pop()
		if err != nil {
			d.fail(q.index, err)
			return false
		}
		if r == nil {
			return false
		}
		if slot := d.slot(r); slot != nil && slot.Take() {
			go q.work(r, slot)
			continue
		}
		turn := q.turn.Begin()
		d.watch.WakeUp()
		d.serve(r)
		if !q.turn.End(turn) {
			// The watchdog took a slot for us along with the role.
			d.workers.Free()
			return true
		}
	}
}

// slot is what r needs to be carried out beside the queue; nil if it should not be.
func (d *device) slot(r *request) *turns.Slots {
	switch {
	case r.opcode == opSetLkw:
		return &d.lockers
	case r.more || r.blocks():
		return &d.workers
	}
	return nil
}

func (q *queue) work(r *request, slot *turns.Slots) {
	debug.SetPanicOnFault(true)
	r.beside = true
	q.dev.serve(r)
	slot.Free()
}

// relieve passes the role of the goroutine that made turn to a new one.
func (q *queue) relieve(turn uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.started || !q.dev.workers.Take() {
		return
	}
	if !q.turn.Pass(turn) {
		q.dev.workers.Free()
		return
	}
	q.loops.Add(1)
	go q.loop(q.kick)
}

// pop takes the next request, or arms the kick and returns nil. A request is counted in running.
func (q *queue) pop() (*request, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.started || !q.enabled || q.dev.broken.Load() {
		return nil, nil
	}
	left, err := q.availableLocked()
	if err != nil {
		return nil, err
	}
	if left == 0 {
		q.armLocked(true)
		// One that came before the guest could see that we want a kick.
		if left, err = q.availableLocked(); left == 0 || err != nil {
			return nil, err
		}
	}
	q.armLocked(false)
	r := &request{q: q, more: left > 1}
	again := len(q.resubmit) > 0
	if again {
		r.head = q.resubmit[0]
		q.resubmit = q.resubmit[1:]
	} else {
		r.head = q.ring.availHead(q.lastAvail)
		q.lastAvail++
	}
	if uint32(r.head) >= q.num || q.busy[r.head] {
		return nil, fmt.Errorf("%w: head %d of %d is not available", ErrGuest, r.head, q.num)
	}
	if r.chain, err = q.ring.walk(q.mem, r.head); err != nil {
		return nil, err
	}
	if r.header, err = r.readHeader(); err != nil {
		return nil, err
	}
	q.busy[r.head] = true
	if q.track != nil && !again {
		q.track.begin(r.head)
	}
	q.mem.acquire()
	r.mem = q.mem
	q.running.Add(1)
	return r, nil
}

func (q *queue) availableLocked() (int, error) {
	n := q.ring.availIdx() - q.lastAvail
	if uint32(n) > q.num {
		return 0, fmt.Errorf("%w: %d requests available in a ring of %d", ErrGuest, n, q.num)
	}
	return int(n) + len(q.resubmit), nil
}

// armLocked asks the guest to kick, or not to: the event index need not be moved for the latter.
func (q *queue) armLocked(on bool) {
	if q.armed == on {
		return
	}
	q.armed = on
	switch {
	case q.eventIdx && on:
		q.ring.setAvailEvent(q.lastAvail)
	case q.eventIdx:
	case on:
		q.ring.setUsedFlags(0)
	default:
		q.ring.setUsedFlags(usedNoNotify)
	}
}

// push gives the chain back with n bytes written, and calls the guest if it wants that.
func (q *queue) push(r *request, n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.track != nil {
		q.track.finish(r.head)
	}
	old := q.usedIdx
	q.ring.setUsed(old, r.head, uint32(n))
	q.usedIdx++
	q.ring.setUsedIdx(q.usedIdx)
	if q.track != nil {
		q.track.settle(r.head, q.usedIdx)
	}
	q.busy[r.head] = false
	var want bool
	if q.eventIdx {
		want = q.ring.usedEvent() == old || !q.signalled
	} else {
		want = q.ring.availFlags()&availNoInterrupt == 0
	}
	if want {
		q.signalled = true
		signal(q.call)
	}
}

// done ends the request after push, or without it on a broken device.
func (r *request) done() {
	r.mem.release()
	r.q.running.Done()
}
