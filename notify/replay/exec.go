package replay

import (
	"context"
	"errors"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/fusenotify"
)

// lastAttempt is the number of the last try of a step; the first is 0.
const lastAttempt = 2

// errMismatch says that the kernel did something without asking for it.
var errMismatch = errors.New("the kernel took it for something else")

// run builds a step and performs it. The guest's kernel may hold a dentry that is
// ahead of the event, because a process looked the name up early: then the call
// fails or names another node, the names are expired, and the step is built again.
func (r *Replayer) run(ev *notify.Event, build func(attempt int) *step, call func(*step) error) bool {
	var err error
	defer r.fs.hot.Store(nil)
	for attempt := 0; attempt <= lastAttempt; attempt++ {
		s := build(attempt)
		if attempt > 0 && s.op == opMove {
			r.lookAhead(s)
		}
		r.far.ready()
		r.fs.cur.Store(s)
		err = call(s)
		r.fs.cur.Store(nil)
		done := s.end()
		r.settle(s)
		r.detached = r.detached || errors.Is(err, notify.ErrDetached)
		if (err == nil || r.detached) && done {
			r.stats.Replayed.Add(1)
			return true
		}
		if r.detached {
			return false
		}
		if err == nil {
			err = errMismatch
		}
		if permanent(err) && !(errors.Is(err, unix.EPERM) && s.op == opMake) {
			break
		}
		r.stats.Retries.Add(1)
		if r.log.Enabled(context.Background(), slog.LevelDebug) {
			r.log.Debug("step tried again", slog.String("event", ev.String()), slog.Any("error", err),
				slog.String("step", s.String()))
		}
		for _, sd := range []*side{&s.src, &s.dst} {
			if sd.name != "" && sd.parent != stagingID {
				// From here on the answers to guest processes are not cached.
				r.fs.hot.Store(&[2]nameKey{{s.src.parent, s.src.name}, {s.dst.parent, s.dst.name}})
				r.expire(sd.parent, sd.name)
				r.dirs.drop(sd.parent)
			}
		}
	}
	r.stats.Fallbacks.Add(1)
	r.stats.setLast(ev.String() + ": " + err.Error())
	r.log.Warn("event not replayed; caches dropped", slog.String("event", ev.String()), slog.Any("error", err))
	r.cohere(ev)
	return false
}

func permanent(err error) bool {
	var earlier *notify.EarlierError
	if errors.As(err, &earlier) {
		return false // not about this step
	}
	return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY) ||
		errors.Is(err, unix.ETXTBSY) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOTCONN)
}

// lookAhead looks the sides of a rename up by themselves: a directory that a guest process
// has found at its new place already must be moved back in the guest's dentry tree, and
// the kernel does that outside of a rename only. What an exchange takes the place of can be
// such a directory, too.
func (r *Replayer) lookAhead(s *step) {
	r.lookAheadAt(s, &s.src)
	if s.exchange {
		r.lookAheadAt(s, &s.dst)
	}
}

func (r *Replayer) lookAheadAt(s *step, sd *side) {
	dir, err := r.dirs.openIn(sd.parent, r.view.superAt(s.src.parent, s.dst.parent, s.src.node))
	if err != nil {
		return
	}
	r.far.ready()
	r.fs.cur.Store(s)
	// It may fail: the call that it prepares will tell.
	_ = r.dirs.perform(notify.Call{Op: notify.CallLook, Dir: dir, Name: sd.name})
	r.fs.cur.Store(nil)
	s.finished()
}

// settle gives back what a step took and the kernel did not.
func (r *Replayer) settle(s *step) {
	if s.made != nil && !s.used {
		if s.madeCounted {
			r.far.Forget(s.made.NodeId, 1)
		} else {
			r.view.release(r.view.node(s.made.NodeId))
		}
	}
	for _, sd := range []*side{&s.src, &s.dst} {
		if sd.entry != nil {
			r.far.Forget(sd.entry.NodeId, 1)
			sd.entry = nil
		}
		if sd.node != nil {
			r.view.release(sd.node)
		}
	}
}

// expire makes the guest's kernel ask again for a name.
func (r *Replayer) expire(parent uint64, name string) {
	if parent != stagingID {
		r.far.InvalEntry(parent, name, true)
	}
}

// fresh drops what the guest has cached of n, which sd names, before its watchers are told.
func (r *Replayer) fresh(sd *side, n *vnode, op notify.Op) {
	if op == notify.OpModify && n != nil {
		r.closed.written(n.id)
	}
	if n == nil || n.isGhost() || r.found.dropped(n.id, op) {
		return
	}
	if r.fs.mute.Load() {
		r.freshen(sd, n, op)
		return
	}
	switch op {
	case notify.OpModify, notify.OpCloseWrite:
		if n.isReg() && r.view.isOpened(n) {
			r.far.InvalInode(n.id, 0, -1)
		}
	case notify.OpAttrib:
		r.far.InvalInode(n.id, -1, 0)
	}
}

func (v *view) isOpened(n *vnode) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	// What was found by a name that the guest does not know can be known to it by another.
	if known := v.nodes.Get(n.id); known != nil {
		return known.opened
	}
	return n.opened
}

// dropAttr makes the guest's kernel ask again for the attributes of obj.
func (r *Replayer) dropAttr(obj notify.Object) {
	r.idC = r.tree.NodeIDs(r.idC[:0], obj)
	for _, id := range r.idC {
		if !r.found.dropped(id, notify.OpLinkCount) {
			r.far.InvalInode(id, -1, 0)
		}
	}
}

// cohere drops the caches that an event makes stale, without any event in the guest.
func (r *Replayer) cohere(ev *notify.Event) {
	drop := func(dir notify.Object, name string) {
		if dir.IsZero() {
			return
		}
		for _, p := range r.tree.NodeIDs(nil, dir) {
			if name == "." {
				r.far.InvalInode(p, -1, 0)
				continue
			}
			if ev.Op.Mask()&(notify.Create|notify.Delete|notify.Moves) != 0 {
				r.far.InvalEntry(p, name, true)
				r.far.InvalInode(p, 0, 0)
			} else if n, _ := r.view.lookup(p, name); n != nil && !n.isGhost() {
				r.far.InvalInode(n.id, 0, -1)
			}
		}
	}
	drop(ev.Dir, ev.Name)
	drop(ev.NewDir, ev.NewName)
	if !ev.Object.IsZero() {
		for _, id := range r.tree.NodeIDs(nil, ev.Object) {
			r.far.InvalInode(id, 0, -1)
		}
	}
}

// refused keeps an error of a notification that is more than "was not cached". It is called
// where the process's descriptors are.
func (r *Replayer) refused(err error) {
	if err == nil || errors.Is(err, fusenotify.ErrNotCached) {
		return
	}
	if errors.Is(err, notify.ErrDetached) {
		r.detached = true
		return
	}
	r.stats.setLast("notification: " + err.Error())
	r.cfg.Logger.Debug("notification refused", slog.Any("error", err))
}
