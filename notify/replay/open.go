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
	byNode map[uint64][]notify.Slot
	total  int
}

func (o *openFiles) init() { o.byNode = make(map[uint64][]notify.Slot) }

func (o *openFiles) put(id uint64, s notify.Slot) bool {
	if o.total >= openLimit {
		return false
	}
	o.byNode[id] = append(o.byNode[id], s)
	o.total++
	return true
}

func (o *openFiles) take(id uint64) (notify.Slot, bool) {
	slots := o.byNode[id]
	if len(slots) == 0 {
		return notify.SlotNone, false
	}
	s := slots[0]
	if o.byNode[id] = slots[1:]; len(slots) == 1 {
		delete(o.byNode, id)
	}
	o.total--
	return s, true
}

// forget takes every file for closed.
func (o *openFiles) forget() {
	clear(o.byNode)
	o.total = 0
}

// open performs OPEN, CLOSE_NOWRITE and CLOSE_WRITE. Only regular files and directories
// are opened: in the guest a fifo or a device is another one than on the host.
//
// An OPEN does not say whether it is for writing. It is replayed as a read-only open
// that is kept for its CLOSE_NOWRITE; a CLOSE_WRITE opens and closes on its own.
func (r *Replayer) open(p uint64, name string, ev *notify.Event) {
	if name == "." {
		return
	}
	probe := r.target(p, name, ev)
	node := probe.node
	giveBack := func() { r.settle(&step{src: probe}) }
	if node.mode() != unix.S_IFREG && !(node.isDir() && ev.Op != notify.OpCloseWrite) {
		giveBack()
		return
	}
	if ev.Op == notify.OpCloseNowrite {
		giveBack()
		if slot, ok := r.opens.take(node.id); ok {
			r.dirs.close(slot)
			r.stats.Replayed.Add(1)
		}
		return
	}
	if ev.Op == notify.OpCloseWrite && r.retold(node.id) {
		giveBack()
		return
	}
	keep := notify.SlotNone
	ok := r.run(ev, func(attempt int) *step {
		if attempt > 0 {
			probe = r.target(p, name, ev)
		}
		s := &step{op: opOpen, src: probe}
		r.fresh(&s.src, s.src.node, ev.Op)
		// A directory is opened without a request.
		s.done = node.isDir() || r.fs.noOpen
		return s
	}, func(s *step) error {
		dir, err := r.dirs.open(p)
		if err != nil {
			return err
		}
		if ev.Op == notify.OpCloseWrite {
			if slot, ok := r.opens.take(node.id); ok {
				defer r.dirs.close(slot)
			}
			return r.dirs.perform(notify.Call{Op: notify.CallOpen, Dir: dir, Name: name, Mode: unix.O_WRONLY})
		}
		slot := r.dirs.slot()
		err = r.dirs.perform(notify.Call{Op: notify.CallOpen, Dir: dir, Name: name, Mode: unix.O_RDONLY, Slot: slot})
		switch {
		case err != nil:
			r.dirs.unused(slot)
		case !s.finished():
			r.dirs.close(slot) // some other file, or opened without a request
		default:
			keep = slot
		}
		return err
	})
	if !ok || keep == notify.SlotNone {
		return
	}
	if node.isGhost() || !r.opens.put(node.id, keep) {
		r.dirs.close(keep)
	}
}
