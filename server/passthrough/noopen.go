package passthrough

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
)

// idleWrite is how long a file that nobody writes to stays open for writing, where the guest's
// kernel does not tell of closes. The host's watchers then hear CLOSE_WRITE.
const idleWrite = 100 * time.Millisecond

// file returns the open file that a request is about, with a reference to its
// descriptor. With NoOpen that is one of ours.
func (fs *FS) file(id, fh uint64, write bool) (*openFile, error) {
	if !fs.opts.NoOpen {
		if f := fs.files.get(fh, nil); f != nil {
			return f, nil
		}
		return nil, unix.EBADF
	}
	n, err := fs.node(id)
	if err != nil {
		return nil, err
	}
	if f := fs.ios.get(n, write); f != nil {
		return f, nil
	}
	if n.typ() != unix.S_IFREG {
		return nil, unix.ENXIO
	}
	flags := uint32(unix.O_RDONLY)
	if write {
		if fs.opts.ReadOnly {
			return nil, unix.EROFS
		}
		flags = unix.O_RDWR
	}
	raw, err := fs.openNode(n, int(flags), write)
	if err == unix.EMFILE || err == unix.ENFILE {
		fs.ios.shrink()
		raw, err = fs.openNode(n, int(flags), write)
	}
	if err != nil {
		return nil, err
	}
	f := &openFile{n: n, fd: sys.NewFD(raw), flags: flags}
	f.fd.Acquire()
	fs.ios.put(f)
	return f, nil
}

// ioCache bounds the files that are open because the guest reads or writes by nodeid. They
// are on their node's list as well: that is how they are found, and how an object that
// the host has unlinked is reached. What has not been used since the hand passed is closed first.
type ioCache struct {
	max int
	// closing announces the close of a file that could write, and returns what to call after.
	closing func(*openFile) func()

	mu     sync.Mutex
	all    []*openFile
	hand   int
	timer  *time.Timer // runs while a file is open for writing
	ticks  sync.WaitGroup
	closed bool
}

// ioUse is what an openFile has for its ioCache.
type ioUse struct {
	used atomic.Bool
	slot int // in ioCache.all; guarded by ioCache.mu
	in   bool
}

// get returns a file of n with a reference to its descriptor, or nil.
func (c *ioCache) get(n *node, write bool) *openFile {
	n.mu.Lock()
	defer n.mu.Unlock()
	for f := n.heldLocked().files; f != nil; f = f.next {
		mode := f.flags & unix.O_ACCMODE
		if mode == unix.O_RDWR || write == (mode == unix.O_WRONLY) {
			if f.fd.Acquire() {
				f.io.used.Store(true)
				return f
			}
		}
	}
	return nil
}

// put takes f over. Two requests that open the same file at once make two.
func (c *ioCache) put(f *openFile) {
	f.io.used.Store(true)
	c.mu.Lock()
	f.n.mu.Lock()
	if c.closed || f.n.gone {
		f.n.mu.Unlock()
		c.mu.Unlock()
		c.close(f)
		return
	}
	h := f.n.holdLocked()
	f.next, h.files = h.files, f
	f.n.mu.Unlock()
	f.io.slot, f.io.in = len(c.all), true
	c.all = append(c.all, f)
	if f.writable() && c.timer == nil {
		c.armLocked()
	}
	evicted := c.evictLocked(c.max)
	c.mu.Unlock()
	c.closeAllOf(evicted)
}

func (c *ioCache) armLocked() {
	c.ticks.Add(1)
	c.timer = time.AfterFunc(idleWrite, c.tick)
}

func (c *ioCache) takeLocked(f *openFile) {
	last := c.all[len(c.all)-1]
	c.all[f.io.slot] = last
	last.io.slot = f.io.slot
	c.all[len(c.all)-1] = nil
	c.all = c.all[:len(c.all)-1]
	f.io.in = false
}

func (c *ioCache) evictLocked(keep int) (out []*openFile) {
	for len(c.all) > keep {
		if c.hand >= len(c.all) {
			c.hand = 0
		}
		f := c.all[c.hand]
		if f.io.used.Swap(false) {
			c.hand++
			continue
		}
		c.takeLocked(f)
		out = append(out, f)
	}
	return out
}

// tick closes what was open for writing and is idle.
func (c *ioCache) tick() {
	defer c.ticks.Done()
	c.mu.Lock()
	var idle []*openFile
	writers := 0
	for i := 0; i < len(c.all); {
		f := c.all[i]
		switch {
		case !f.writable():
			i++
		case f.io.used.Swap(false):
			writers++
			i++
		default:
			c.takeLocked(f) // moves another to i
			idle = append(idle, f)
		}
	}
	c.timer = nil
	if writers > 0 && !c.closed {
		c.armLocked()
	}
	c.mu.Unlock()
	c.closeAllOf(idle)
}

// drop closes n's files, because n is forgotten.
func (c *ioCache) drop(n *node) {
	n.mu.Lock()
	none := n.heldLocked().files == nil
	n.mu.Unlock()
	if none {
		return
	}
	c.mu.Lock()
	var out []*openFile
	n.mu.Lock()
	for f := n.heldLocked().files; f != nil; f = f.next {
		if f.io.in {
			out = append(out, f)
		}
	}
	n.mu.Unlock()
	for _, f := range out {
		c.takeLocked(f)
	}
	c.mu.Unlock()
	c.closeAllOf(out)
}

func (c *ioCache) shrink() {
	c.mu.Lock()
	evicted := c.evictLocked(len(c.all) / 2)
	c.mu.Unlock()
	c.closeAllOf(evicted)
}

func (c *ioCache) closeAllOf(files []*openFile) {
	for _, f := range files {
		c.close(f)
	}
}

func (c *ioCache) close(f *openFile) {
	f.unlist()
	if f.writable() {
		defer c.closing(f)()
	}
	f.fd.Release()
}

func (c *ioCache) closeAll() {
	c.mu.Lock()
	c.closed = true
	if c.timer != nil && c.timer.Stop() {
		c.ticks.Done()
	}
	all := c.all
	c.all = nil
	for _, f := range all {
		f.io.in = false
	}
	c.mu.Unlock()
	c.ticks.Wait()
	c.closeAllOf(all)
}

// writeAs writes as a file that the guest has opened with flags: the descriptor is one for all who have
// it open. A page of a mapping (cached) has its place, whatever the flags.
func (f *openFile) writeAs(data [][]byte, off int64, flags uint32, cached bool) (int, error) {
	rwf := 0
	if flags&unix.O_APPEND != 0 && !cached {
		rwf |= unix.RWF_APPEND
	}
	switch {
	case flags&unix.O_SYNC == unix.O_SYNC:
		rwf |= unix.RWF_SYNC
	case flags&unix.O_DSYNC != 0:
		rwf |= unix.RWF_DSYNC
	}
	return sys.Retry(func() (int, error) {
		switch {
		case rwf != 0:
			return unix.Pwritev2(f.fd.Int(), data, off, rwf)
		case len(data) == 1:
			return unix.Pwrite(f.fd.Int(), data[0], off)
		}
		return unix.Pwritev(f.fd.Int(), data, off)
	})
}
