package fusedev

import (
	"encoding/binary"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// parkAfter is how many looks without a request let the watchdog sleep.
const parkAfter = 16

// slots counts what runs beside the reader, up to a maximum.
type slots struct {
	used atomic.Int64
	max  int64
}

func (s *slots) take() bool {
	if s.used.Add(1) <= s.max {
		return true
	}
	s.used.Add(-1)
	return false
}

func (s *slots) free() { s.used.Add(-1) }

// read is syscall.Read without the os package's bookkeeping.
func read(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := syscall.Syscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), errno
}

// next reads one request. It returns false when the connection has ended.
func (c *Conn) next(h *hand) (int, bool) {
	for {
		n, errno := read(c.fd, h.in)
		switch errno {
		case 0:
			if n < inHeaderSize {
				c.end(fmt.Errorf("read %s: request of %d bytes", devicePath, n))
				return 0, false
			}
			return n, true
		case unix.EINTR, unix.ENOENT:
			// ENOENT: the caller was killed before its request was read.
		case unix.EAGAIN:
			// Somebody made the descriptor non-blocking.
			fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
				c.end(fmt.Errorf("poll %s: %w", devicePath, err))
				return 0, false
			}
		case unix.ENODEV, unix.ECONNABORTED:
			c.end(nil)
			return 0, false
		default:
			c.end(fmt.Errorf("read %s: %w", devicePath, errno))
			return 0, false
		}
	}
}

// readLoop has the reading role until the connection ends or the watchdog takes
// the role away.
func (c *Conn) readLoop() {
	defer c.running.Done()
	h := c.hands.get(false)
	defer func() { c.hands.put(h) }()
	for {
		n, ok := c.next(h)
		if !ok {
			return
		}
		switch h.classify(n) {
		case initial:
			// Nothing else is read until it is answered, and the turn stays as it is: what INIT
			// settles is written before there is a second reader or a worker.
			c.handle(h, n)
			continue
		case lockWait:
			if !c.locks.take() {
				c.reply(h, h.errorReply(h.id(), fuse.Status(unix.ENOLCK)))
				continue
			}
			h = c.handOver(h, n, &c.locks)
			continue
		case blocking:
			if c.workers.take() {
				h = c.handOver(h, n, &c.workers)
				continue
			}
		}
		turn := c.turn.Add(1)
		c.wakeWatchdog()
		c.handle(h, n)
		if !c.turn.CompareAndSwap(turn, turn+1) {
			// The watchdog took a slot for us along with the role.
			c.workers.free()
			return
		}
	}
}

// handOver starts a goroutine for the request in h and returns the hand to read on with.
// A request that fits is copied, so that lock waiters do not sit on large buffers.
func (c *Conn) handOver(h *hand, n int, slot *slots) *hand {
	mine, theirs := h, h
	if h.fitsSmall(n) {
		theirs = c.hands.get(true)
		copy(theirs.in, h.in[:n])
	} else {
		mine = c.hands.get(false)
	}
	c.running.Add(1)
	go c.work(theirs, n, slot)
	return mine
}

func (c *Conn) work(h *hand, n int, slot *slots) {
	defer c.running.Done()
	c.handle(h, n)
	slot.free()
	c.hands.put(h)
}

// handle carries out the request of n bytes in h and replies.
func (c *Conn) handle(h *hand, n int) {
	op, unique := h.opcode(), h.id()
	c.requests.Add(op)
	h.unique.Store(unique)
	size, status := c.call(h, n)
	h.unique.Store(0)
	if size == 0 && !status.Ok() && wantsReply(op) {
		size = h.errorReply(unique, status)
	}
	if op == opInit {
		c.initialized(h, n, size)
		return
	}
	if size > 0 {
		c.reply(h, size)
	}
}

// call keeps a panic outside of go-fuse's own guard, as in a ReadResult, from
// ending the connection.
func (c *Conn) call(h *hand, n int) (size int, status fuse.Status) {
	defer func() {
		if v := recover(); v != nil {
			c.log.Error("panic in a request handler", "opcode", h.opcode(), "panic", v, "stack", string(debug.Stack()))
			size, status = 0, fuse.EIO
		}
	}()
	h.inv[0] = h.in[:n]
	return c.server.HandleRequest(h.inv[:], h.outv[:])
}

// reply writes n bytes of h.out. ENOENT means that the kernel no longer waits.
func (c *Conn) reply(h *hand, n int) bool {
	for {
		_, errno := write(c.fd, h.out[:n])
		switch errno {
		case unix.EINTR:
			continue
		case 0:
			return true
		case unix.ENOENT, unix.ENODEV, unix.ECONNABORTED:
		default:
			c.log.Error("the kernel refused a reply", "opcode", h.opcode(), "bytes", n, "err", errno)
		}
		return false
	}
}

func write(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := syscall.Syscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), errno
}

// wakeWatchdog is called after turn has moved: either we see that the watchdog
// sleeps, or it sees the new turn before it does.
func (c *Conn) wakeWatchdog() {
	if c.parked.Load() && c.parked.CompareAndSwap(true, false) {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// watchdog relieves a reader that is stuck in a handler.
func (c *Conn) watchdog() {
	defer c.running.Done()
	timer := time.NewTimer(c.opts.SlowAfter)
	defer timer.Stop()
	var last uint64
	for idle := 0; ; {
		select {
		case <-timer.C:
		case <-c.dead:
			return
		}
		turn := c.turn.Load()
		switch {
		case turn != last:
			idle = 0
		case turn%2 == 1:
			c.relieve(turn)
		default:
			idle++
		}
		last = turn
		if idle >= parkAfter {
			idle = 0
			if !c.park(turn) {
				return
			}
		}
		timer.Reset(c.opts.SlowAfter)
	}
}

// relieve starts a new reader if the one that made turn is still in its handler.
func (c *Conn) relieve(turn uint64) {
	if !c.workers.take() {
		return
	}
	if !c.turn.CompareAndSwap(turn, turn+1) {
		c.workers.free()
		return
	}
	c.relieved.Add(1)
	c.running.Add(1)
	go c.readLoop()
}

// park sleeps until the next request. It returns false when the connection has ended.
func (c *Conn) park(turn uint64) bool {
	c.parked.Store(true)
	if c.turn.Load() != turn {
		c.parked.Store(false)
		return true
	}
	select {
	case <-c.wake:
		return true
	case <-c.dead:
		return false
	}
}

// cancelAll tells every handler that its request is off. go-fuse lets a handler
// know of that only through INTERRUPT, so we make one for each.
//
//	struct fuse_interrupt_in {
//		uint64_t	unique;
//	};
func (c *Conn) cancelAll() {
	const size = inHeaderSize + 8
	in, out := make([]byte, size), make([]byte, smallData)
	binary.NativeEndian.PutUint32(in[0:], size)
	binary.NativeEndian.PutUint32(in[4:], opInterrupt)
	for _, unique := range c.hands.uniques() {
		binary.NativeEndian.PutUint64(in[inHeaderSize:], unique)
		c.server.HandleRequest([][]byte{in}, [][]byte{out})
	}
}
