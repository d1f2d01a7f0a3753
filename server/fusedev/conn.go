package fusedev

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/fusenotify"
	"github.com/heraldfs/heraldfs/server/opcount"
	"github.com/heraldfs/heraldfs/server/turns"
	"golang.org/x/sys/unix"
)

// cancelEvery is how often the handlers that are left over at the end are cancelled again:
// one that had not begun at the first time is missed by it.
const cancelEvery = 5 * time.Millisecond

// Conn is a mounted file system and its connection to the kernel.
type Conn struct {
	fs     fuse.RawFileSystem
	server *fuse.ProtocolServer
	notify *fusenotify.Conn
	opts   Options
	log    *slog.Logger
	point  string
	direct bool
	id     identity

	hands    *handPool
	workers  turns.Slots
	locks    turns.Slots
	turn     turns.Turn
	watchdog *turns.Watchdog
	relieved atomic.Uint64
	requests opcount.Counts
	running  sync.WaitGroup // reader, watchdog and handlers

	fdMu sync.RWMutex
	fd   int // -1 when closed

	ready     chan struct{} // closed when INIT is answered and POLL refused
	unmounted chan struct{} // closed when the visible mount is gone
	dead      chan struct{} // closed when the kernel has ended the connection
	ended     chan struct{} // closed when the descriptor is closed

	mu       sync.Mutex
	serving  bool
	closed   bool
	err      error // why the connection ended
	initIn   []byte
	initOut  fuse.InitOut
	watching *mountWatch
	queues   *queues // nil without FUSE over io_uring
	keeper   *keeper
}

// Mount mounts fs on a directory. Requests wait in the kernel until Serve runs.
// The Conn must be ended by Close, or by Serve.
func Mount(mountpoint string, fs fuse.RawFileSystem, opts Options) (*Conn, error) {
	opts.setDefaults()
	point, err := prepare(mountpoint, &opts)
	if err != nil {
		return nil, err
	}
	fd, direct, err := mountAny(point, &opts)
	if err != nil {
		return nil, err
	}
	id, err := identify(unix.AT_FDCWD, point, 0)
	if err != nil {
		err = errors.Join(err, unmountPath(point, true))
		unix.Close(fd)
		return nil, err
	}
	c := &Conn{
		fs: fs, server: fuse.NewProtocolServer(fs, &opts.Fuse),
		opts: opts, log: opts.Logger, point: point, direct: direct, id: id,
		hands: newHandPool(opts.Fuse.MaxWrite),
		fd:    fd,
		ready: make(chan struct{}), unmounted: make(chan struct{}),
		dead: make(chan struct{}), ended: make(chan struct{}),
	}
	c.workers.Max = int64(opts.MaxWorkers)
	c.locks.Max = int64(opts.MaxLockWaiters)
	c.watchdog = turns.NewWatchdog(opts.SlowAfter, []*turns.Turn{&c.turn}, func(_ int, turn uint64) { c.relieve(turn) })
	c.notify = fusenotify.New(c.writeNotification)
	if opts.IOURing != IOURingOff {
		c.queues, err = c.newQueues()
		switch {
		case err == nil:
		case opts.IOURing == IOURingOn:
			err = errors.Join(err, unmountPath(point, true))
			unix.Close(fd)
			return nil, err
		case IOURingOffered() == nil:
			c.log.Warn("requests are read from the device", "err", err)
		default:
			c.log.Debug("requests are read from the device", "err", err)
		}
	}
	if opts.Keeper {
		if c.keeper, err = c.startKeeper(); err != nil {
			level := slog.LevelInfo // usual, where fusectl is not mounted and we may not do so
			if direct {
				level = slog.LevelWarn
			}
			opts.Logger.Log(context.Background(), level, "if this process is killed, its mount may hang until it is aborted",
				"mountpoint", point, "reason", err)
		}
	}
	return c, nil
}

// Requests returns how many requests were read, by opcode.
func (c *Conn) Requests() map[string]uint64 { return c.requests.Snapshot() }

// Serve answers requests until the file system is unmounted, Close is called or ctx ends,
// which has the effect of Close, and returns nil then. It must be called once.
func (c *Conn) Serve(ctx context.Context) error {
	c.mu.Lock()
	if c.serving || c.closed {
		c.mu.Unlock()
		return fmt.Errorf("serve %s: %w", c.point, notify.ErrClosed)
	}
	c.serving = true
	c.mu.Unlock()

	c.running.Add(2)
	go c.readLoop()
	go func() {
		defer c.running.Done()
		c.watchdog.Run(c.dead)
	}()

	var helper sync.WaitGroup
	helper.Go(func() {
		select {
		case <-ctx.Done():
			if err := c.shutdown(); err != nil {
				c.log.Error("cannot end the mount", "mountpoint", c.point, "err", err)
			}
		case <-c.dead:
		}
	})
	<-c.dead
	c.waitHandlers()
	helper.Wait()
	c.stopWatch()
	c.closeFD()
	c.dismissKeeper()
	c.fs.OnUnmount()
	if err := c.detachDead(); err != nil {
		c.log.Error("cannot remove the dead mount", "mountpoint", c.point, "err", err)
	}
	close(c.ended)
	return c.err
}

// waitHandlers cancels what is still being worked on and waits for it.
func (c *Conn) waitHandlers() {
	done := make(chan struct{})
	go func() {
		c.running.Wait()
		close(done)
	}()
	tick := time.NewTicker(cancelEvery)
	defer tick.Stop()
	for {
		c.cancelAll()
		if c.queues != nil {
			c.queues.wake()
		}
		select {
		case <-done:
			return
		case <-tick.C:
		}
	}
}

// ending reports whether the connection has ended.
func (c *Conn) ending() bool {
	select {
	case <-c.dead:
		return true
	default:
		return false
	}
}

// end records why the connection ended and lets Serve go on.
func (c *Conn) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.dead:
		return
	default:
	}
	if c.err == nil {
		c.err = err
	}
	close(c.dead)
	if c.queues != nil {
		c.queues.open(false)
	}
	c.setUnmountedLocked()
}

func (c *Conn) setUnmounted() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setUnmountedLocked()
}

func (c *Conn) setUnmountedLocked() {
	select {
	case <-c.unmounted:
	default:
		close(c.unmounted)
	}
}

// initialized answers INIT and keeps what was said.
func (c *Conn) initialized(h *hand, n, size int) {
	agreed := false
	c.mu.Lock()
	c.initIn = slices.Clone(h.in[:n])
	if size > outHeaderSize {
		out := unsafe.Slice((*byte)(unsafe.Pointer(&c.initOut)), unsafe.Sizeof(c.initOut))
		copy(out, h.out[outHeaderSize:size])
		if agreed = c.queues != nil && c.queues.settle(c.initIn, &c.initOut); agreed {
			copy(h.out[outHeaderSize:size], unsafe.Slice((*byte)(unsafe.Pointer(&c.initOut)), unsafe.Sizeof(c.initOut)))
		}
	}
	c.mu.Unlock()
	answered := size > 0 && c.reply(h, size)
	if c.queues != nil {
		c.queues.open(agreed && answered)
	}
	if !answered {
		return
	}
	if size <= outHeaderSize {
		// The kernel fails every request from now on.
		c.mu.Lock()
		c.err = fmt.Errorf("mount %s: kernel and server cannot agree on a protocol version", c.point)
		c.mu.Unlock()
		c.running.Go(func() {
			if err := c.shutdown(); err != nil {
				c.log.Error("cannot end the mount", "mountpoint", c.point, "err", err)
			}
		})
		return
	}
	// The kernel sets its own readahead while it takes our reply.
	c.raiseReadAhead()
	c.running.Go(func() {
		c.refusePoll()
		close(c.ready)
	})
}

// pollFile is a name in the root that go-fuse answers for without asking the file system.
const pollFile = ".go-fuse-epoll-hack"

// refusePoll has the kernel send its first POLL, which go-fuse answers ENOSYS, and
// so its last. The Go runtime adds every file that it opens to its epoll set with
// a call that keeps the P: if a process sends that POLL to its own mount while the
// world is being stopped, nobody answers it.
func (c *Conn) refusePoll() {
	fd, err := unix.Open(filepath.Join(c.point, pollFile), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		c.log.Debug("cannot keep the kernel from sending POLL", "err", err)
		return
	}
	defer unix.Close(fd)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err != nil {
		c.log.Debug("cannot keep the kernel from sending POLL", "err", err)
	}
}

func (c *Conn) raiseReadAhead() {
	if c.opts.ReadAheadKB <= 0 {
		return
	}
	path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", c.id.major, c.id.minor)
	if err := os.WriteFile(path, []byte(strconv.Itoa(c.opts.ReadAheadKB)), 0); err != nil {
		c.log.Debug("readahead stays as it is", "err", err)
	}
}

// WaitReady returns nil when INIT has been answered, so that the mount can be used.
func (c *Conn) WaitReady(ctx context.Context) error {
	select {
	case <-c.ready:
		return nil
	case <-c.dead:
	case <-c.ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	return fmt.Errorf("mount %s: %w", c.point, notify.ErrClosed)
}

// Mountpoint is the absolute path without symlinks that was mounted on.
func (c *Conn) Mountpoint() string { return c.point }

// Notify sends notifications to the kernel. After the end of the connection they return
// notify.ErrClosed.
func (c *Conn) Notify() *fusenotify.Conn { return c.notify }

// FD is the /dev/fuse descriptor, for ioctls. It stays the Conn's, and is gone once
// Serve or Close has returned.
func (c *Conn) FD() int { return c.fd }

// Device is the minor number of the file system's device; its major number is
// zero. It is also the connection's name in /sys/fs/fuse/connections.
func (c *Conn) Device() uint32 { return c.id.minor }

// OverIOURing reports whether requests come by FUSE over io_uring. Valid after WaitReady.
func (c *Conn) OverIOURing() bool { return c.queues != nil && c.queues.active() }

// Relieved counts the times that the watchdog found the reader stuck in a handler.
func (c *Conn) Relieved() uint64 { return c.relieved.Load() }

// InitIn is the INIT request as the kernel sent it, header included; nil before
// WaitReady. A process that takes the descriptor over needs it, since the kernel
// says it once.
func (c *Conn) InitIn() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.initIn)
}

// Negotiated is what INIT was answered with; its Flags64 are the capabilities
// that kernel and server have agreed on. Zero before WaitReady.
func (c *Conn) Negotiated() fuse.InitOut {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.initOut
}

func (c *Conn) writeNotification(b []byte) error {
	c.fdMu.RLock()
	defer c.fdMu.RUnlock()
	if c.fd < 0 {
		return notify.ErrClosed
	}
	for {
		_, errno := write(c.fd, b)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		case unix.ENODEV, unix.EPERM, unix.ECONNABORTED:
			// EPERM: INIT was not answered yet, or the mount is already gone.
			return fmt.Errorf("%w: %w", notify.ErrClosed, errno)
		}
		return errno
	}
}

func (c *Conn) dismissKeeper() {
	c.mu.Lock()
	k := c.keeper
	c.keeper = nil
	c.mu.Unlock()
	if k == nil {
		return
	}
	if err := k.end(); err != nil {
		c.log.Error("the keeper of the mount failed", "mountpoint", c.point, "err", err)
	}
}

func (c *Conn) closeFD() {
	c.fdMu.Lock()
	defer c.fdMu.Unlock()
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}
