package replay

import (
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// openLimit bounds the files that are open in the guest because they are open on the host.
const openLimit = 1024

// openFiles holds what was opened for an OPEN whose close is still to come. Only
// used when opens are delivered.
type openFiles struct {
	byNode map[uint64][]int
	total  int
}

func (o *openFiles) init() { o.byNode = make(map[uint64][]int) }

func (o *openFiles) put(id uint64, fd int) bool {
	if o.total >= openLimit {
		return false
	}
	o.byNode[id] = append(o.byNode[id], fd)
	o.total++
	return true
}

func (o *openFiles) take(id uint64) (int, bool) {
	fds := o.byNode[id]
	if len(fds) == 0 {
		return -1, false
	}
	fd := fds[0]
	if o.byNode[id] = fds[1:]; len(fds) == 1 {
		delete(o.byNode, id)
	}
	o.total--
	return fd, true
}

func (o *openFiles) closeAll() {
	for id, fds := range o.byNode {
		for _, fd := range fds {
			unix.Close(fd)
		}
		delete(o.byNode, id)
	}
	o.total = 0
}

const openFlags = unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY

func openClose(dir int, name string, mode int) error {
	fd, err := unix.Openat(dir, name, mode|openFlags, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// open performs OPEN, CLOSE_NOWRITE and CLOSE_WRITE. Only regular files and directories
// are opened: in the guest a fifo or a device is another one than on the host.
//
// An OPEN does not say whether it is for writing. It is replayed as a read-only open
// that is kept for its CLOSE_NOWRITE; a CLOSE_WRITE opens and closes on its own.
func (r *Replayer) open(p uint64, name string, ev *notify.Event) {
	if p == rootID && name == "." {
		return
	}
	probe := r.target(p, name, ev)
	node := probe.node
	giveBack := func() { r.settle(&step{src: probe}) }
	if node.mode != unix.S_IFREG && !(node.isDir() && ev.Op != notify.OpCloseWrite) {
		giveBack()
		return
	}
	if ev.Op == notify.OpCloseNowrite {
		giveBack()
		if fd, ok := r.opens.take(node.id); ok {
			unix.Close(fd)
			r.stats.Replayed.Add(1)
		}
		return
	}
	mode := unix.O_WRONLY
	if ev.Op == notify.OpOpen {
		mode = unix.O_RDONLY
	}
	keep := -1
	ok := r.run(ev, func(attempt int) *step {
		if attempt > 0 {
			probe = r.target(p, name, ev)
		}
		s := &step{op: opOpen, src: probe}
		r.fresh(s.src.node, ev.Op)
		// A directory is opened without a request.
		s.done = node.isDir()
		return s
	}, func(s *step) error {
		dir, err := r.dirs.open(p)
		if err != nil {
			return err
		}
		if ev.Op == notify.OpCloseWrite {
			if fd, ok := r.opens.take(node.id); ok {
				defer unix.Close(fd)
			}
			return openClose(dir, name, mode)
		}
		fd, err := unix.Openat(dir, name, mode|openFlags, 0)
		if err == nil && !s.finished() {
			unix.Close(fd) // some other file, or opened without a request
			fd = -1
		}
		keep = fd
		return err
	})
	if !ok || keep < 0 {
		return
	}
	if node.isGhost() || !r.opens.put(node.id, keep) {
		unix.Close(keep)
	}
}
