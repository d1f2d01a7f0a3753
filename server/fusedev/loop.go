package fusedev

import (
	"encoding/binary"
	"fmt"
	"runtime/debug"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/server/turns"
)

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
			if !c.locks.Take() {
				c.reply(h, h.errorReply(h.id(), fuse.Status(unix.ENOLCK)))
				continue
			}
			h = c.handOver(h, n, &c.locks)
			continue
		case blocking:
			if c.workers.Take() {
				h = c.handOver(h, n, &c.workers)
				continue
			}
		}
		turn := c.turn.Begin()
		c.watchdog.WakeUp()
		c.handle(h, n)
		if !c.turn.End(turn) {
			// The watchdog took a slot for us along with the role.
			c.workers.Free()
			return
		}
	}
}

// handOver starts a goroutine for the request in h and returns the hand to read on with.
// A request that fits is copied, so that lock waiters do not sit on large buffers.
func (c *Conn) handOver(h *hand, n int, slot *turns.Slots) *hand {
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

func (c *Conn) work(h *hand, n int, slot *turns.Slots) {
	defer c.running.Done()
	c.handle(h, n)
	slot.Free()
	c.hands.put(h)
}

// handle carries out the request of n bytes in h and replies.
func (c *Conn) handle(h *hand, n int) {
	op, unique := h.opcode(), h.id()
	c.requests.Add(op)
	h.unique.Store(unique)
	size, status := c.protect(op, func() (int, fuse.Status) {
		h.inv[0] = h.in[:n]
		return c.server.HandleRequest(h.inv[:], h.outv[:])
	})
	h.unique.Store(0)
	if size == 0 && !status.Ok() && wantsReply(op) {
		size = h.errorReply(unique, status)
	}
	if op == opInit {
		c.initialized(h, n, size)
		return
	}
	if op == opInterrupt && size > 0 && h.replied() == fuse.EAGAIN && c.OverIOURing() {
		// Over io_uring the request may have been given to a worker that has not come to its handler yet,
		// and the kernel does not send the interrupt again.
		in := slices.Clone(h.in[:n])
		c.running.Go(func() { c.interrupt(in) })
	}
	if size > 0 {
		c.reply(h, size)
	}
}

// interrupt carries out an INTERRUPT again until its request is there, which may be over already.
func (c *Conn) interrupt(in []byte) {
	const every, times = time.Millisecond, 50
	out := make([]byte, smallData)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for range times {
		select {
		case <-tick.C:
		case <-c.dead:
			return
		}
		if n, _ := c.server.HandleRequest([][]byte{in}, [][]byte{out}); n == 0 {
			return
		}
	}
}

// protect keeps a panic outside of go-fuse's own guard, as in a ReadResult, from
// ending the connection.
func (c *Conn) protect(op uint32, call func() (int, fuse.Status)) (size int, status fuse.Status) {
	defer func() {
		if v := recover(); v != nil {
			c.log.Error("panic in a request handler", "opcode", op, "panic", v, "stack", string(debug.Stack()))
			size, status = 0, fuse.EIO
		}
	}()
	return call()
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

// relieve starts a new reader if the one that made turn is still in its handler.
func (c *Conn) relieve(turn uint64) {
	if !c.workers.Take() {
		return
	}
	if !c.turn.Pass(turn) {
		c.workers.Free()
		return
	}
	c.relieved.Add(1)
	c.running.Add(1)
	go c.readLoop()
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
