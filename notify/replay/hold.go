package replay

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// holdReach is how far behind the CREATE of a file its CLOSE_WRITE is looked for.
const holdReach = 16

// holding is a file that the guest's kernel has made by opening it for writing, as the host did,
// and that is closed in the turn of its CLOSE_WRITE: one request less than to make it first and to open it then.
type holding struct {
	// at is the index of the CLOSE_WRITE in the batch; 0 if the event in progress makes nothing to be held.
	at   int
	slot notify.Slot
	node uint64
}

// hold looks whether events[i] makes a file that is to be held: nothing but what is done to it may
// come before its CLOSE_WRITE.
func (r *Replayer) hold(events []notify.Event, i int) {
	r.held = holding{}
	ev := &events[i]
	if r.cfg.Agents != nil {
		// An agent that ends closes the file, and the CLOSE_WRITE would be heard before its turn, and twice.
		return
	}
	if ev.Op != notify.OpCreate || ev.IsDir || ev.Verify || r.fs.noOpen || ev.Remote != nil || // each of those is resolved in its turn
		r.mask&notify.CloseWrite == 0 || r.mask&notify.Open != 0 {
		return
	}
	if r.idC = r.tree.NodeIDs(r.idC[:0], ev.Dir); len(r.idC) != 1 {
		return
	}
	for j := i + 1; j < len(events) && j <= i+holdReach; j++ {
		n := &events[j]
		if n.Dir != ev.Dir || n.Name != ev.Name || n.Object != ev.Object || n.IsDir || n.Verify {
			return
		}
		switch n.Op {
		case notify.OpModify, notify.OpAttrib, notify.OpAccess:
		case notify.OpCloseWrite:
			r.held.at = j
			return
		default:
			return
		}
	}
}

// makeHeld is the call of s.
func (r *Replayer) makeHeld(s *step, dir notify.Slot) error {
	s.open = true
	r.fs.cur.Store(s) // once more, so that handlers see it
	slot := r.dirs.slot()
	err := r.dirs.perform(notify.Call{Op: notify.CallOpen, Dir: dir, Name: s.dst.name, Mode: unix.O_WRONLY | unix.O_CREAT, Slot: slot})
	switch {
	case err != nil:
		r.dirs.unused(slot)
	case !s.finished():
		r.dirs.close(slot)
	default:
		r.held.slot, r.held.node = slot, s.made.NodeId
	}
	return err
}

// letGo closes the file that is held if the i-th event is its CLOSE_WRITE.
func (r *Replayer) letGo(i int) bool {
	if r.held.slot == notify.SlotNone || r.held.at != i {
		return false
	}
	r.fresh(&side{}, r.view.node(r.held.node), notify.OpCloseWrite)
	r.far.ready()
	// Whoever is not there any more has closed it.
	_ = r.dirs.perform(notify.Call{Op: notify.CallClose, Slot: r.held.slot})
	r.dirs.unused(r.held.slot)
	r.held = holding{}
	r.stats.Replayed.Add(1)
	return true
}

// dummyOpen is the answer to an open of the replayer's: nothing is read or written by it.
func (f *FS) dummyOpen(nodeid uint64, out *fuse.OpenOut) {
	*out = fuse.OpenOut{Fh: dummyFh, OpenFlags: fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH}
	if f.beside != nil && !ours(nodeid) {
		f.beside.OpenBeside(nodeid, out)
	}
}

// answerCreate answers the request that makes a file and opens it.
func (f *FS) answerCreate(s *step, parent uint64, name string, out *fuse.CreateOut) fuse.Status {
	if !s.open {
		s.mu.Lock()
		defer s.mu.Unlock()
		return f.refuse(s, "create")
	}
	st := f.answerMake(s, parent, name, unix.S_IFREG, &out.EntryOut)
	if st.Ok() {
		f.dummyOpen(out.NodeId, &out.OpenOut)
	}
	return st
}
