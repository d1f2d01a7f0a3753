package replay

import (
	"log/slog"
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

const (
	// clockSlack covers the kernel's coarse file time stamps, and that an event's time is that of its
	// being read, a little later.
	clockSlack = 50 * time.Millisecond
	// strangerSlack is for names that the guest does not know: it would, had it been told of them, so that more
	// can be allowed for a busy machine.
	strangerSlack = 250 * time.Millisecond
	// lossPatience is how long the events behind an overflow may go on coming
	// before the comparison starts all the same.
	lossPatience = 2 * time.Second
	// toldLimit bounds the memory of what comparing has told.
	toldLimit = 1 << 16
)

// reconciler makes up for events that were lost, and checks names about which the
// kernel may have merged something.
//
// After an overflow the events still in the queue are passed over until it has been
// read to its end; then every directory that the guest knows is compared with the host,
// and the differences are replayed. Whatever the comparison told and an event
// tells once more is told once.
type reconciler struct {
	lost  bool
	since time.Time // everything up to here was delivered
	at    time.Time // when the loss was seen
	names map[nameKey]struct{}
	// checks are names of a burst whose events did not name objects: the events were
	// right, but which object is at the name may be known wrongly.
	checks map[nameKey]struct{}
	// dead are objects that the host has no more. Their deletes make the guest see the same,
	// unless the kernel merged the records of several links.
	dead map[notify.Object]struct{}
	// calmAt is when names may be compared, if nothing comes before.
	calmAt time.Time
	told   map[nameKey]notify.Op
	toldAt time.Time
}

// overflow takes note of a loss; idle does the work.
func (c *reconciler) overflow(r *Replayer, ev *notify.Event) {
	r.stats.Overflows.Add(1)
	if !c.lost {
		c.lost, c.since, c.at = true, ev.Time.Add(-clockSlack), time.Now()
		r.log.Warn("events were lost; comparing when the queue is empty", slog.Time("since", c.since))
	}
}

// swallow reports whether ev is not to be replayed: it is behind a loss, or
// comparing has told it.
func (c *reconciler) swallow(r *Replayer, ev *notify.Event) bool {
	if c.lost {
		if ev.Op == notify.OpOverflow {
			return true
		}
		if time.Since(c.at) < lossPatience {
			return true
		}
		c.reconcile(r)
	}
	if len(c.told) == 0 {
		return false
	}
	if time.Since(c.toldAt) > lossPatience {
		// Whatever was queued when we compared has come, or was lost.
		clear(c.told)
		return false
	}
	switch ev.Op {
	case notify.OpCreate, notify.OpDelete:
		return c.heard(r, ev.Dir, ev.Name, ev.Op)
	case notify.OpRename:
		from := c.heard(r, ev.Dir, ev.Name, notify.OpDelete)
		to := c.heard(r, ev.NewDir, ev.NewName, notify.OpCreate)
		return from && (to || ev.NewDir.IsZero()) || to && ev.Dir.IsZero()
	}
	return false
}

func (c *reconciler) heard(r *Replayer, dir notify.Object, name string, op notify.Op) bool {
	if dir.IsZero() {
		return false
	}
	var all bool
	r.idC = r.tree.NodeIDs(r.idC[:0], dir)
	for _, p := range r.idC {
		k := nameKey{p, name}
		all = c.told[k] == op
		delete(c.told, k)
	}
	return all
}

// calm is how long nothing may have happened before names are verified: what is
// found on the host must not be ahead of the events.
const calm = 5 * time.Millisecond

// timeout is how long the replayer may sleep before pause has work; zero is for ever.
func (c *reconciler) timeout() time.Duration {
	if len(c.names) == 0 && len(c.checks) == 0 && len(c.dead) == 0 {
		return 0
	}
	return max(time.Until(c.calmAt), time.Microsecond)
}

// pause runs after each batch. idle says that the source had nothing more when the batch
// was taken; sync that somebody waits for all to be told.
func (c *reconciler) pause(r *Replayer, idle, sync bool) {
	if c.lost && (idle || sync) {
		c.reconcile(r)
	}
	if idle {
		c.calmAt = time.Now().Add(calm)
	}
	if time.Now().Before(c.calmAt) && !(sync && r.q.len() == 0) {
		if len(c.checks) >= toldLimit {
			c.settle(r, true) // too soon costs questions only
		}
		return
	}
	c.compare(r, sync)
	c.bury(r)
	c.settle(r, sync)
}

// reconcile compares all that the guest knows with the host.
func (c *reconciler) reconcile(r *Replayer) {
	c.lost = false
	started := time.Now()
	d := diff{since: c.since}
	dirs := r.view.dirs()
	if r.cfg.Resolver != nil && !r.cfg.Resolver.Exact() {
		r.relearn(dirs)
	}
	for _, id := range dirs {
		d.dir(r, id)
	}
	n := c.tell(r, &d)
	if r.detached {
		// For the next agent to do.
		c.lost, c.at = true, time.Now()
		return
	}
	r.log.Info("comparison done", slog.Int("events", n), slog.Duration("took", time.Since(started)))
}

// tell replays the differences and returns how many there were.
func (c *reconciler) tell(r *Replayer, d *diff) int {
	events := d.events(r)
	if c.told == nil || len(c.told) > toldLimit {
		c.told = make(map[nameKey]notify.Op)
	}
	c.toldAt = time.Now()
	for i := range events {
		ev := &events[i]
		if r.detached {
			break
		}
		r.stats.Reconciled.Add(1)
		r.replay(ev)
		c.mark(r, ev.Dir, ev.Name, map[notify.Op]notify.Op{
			notify.OpCreate: notify.OpCreate, notify.OpDelete: notify.OpDelete, notify.OpRename: notify.OpDelete}[ev.Op])
		if ev.Op == notify.OpRename {
			c.mark(r, ev.NewDir, ev.NewName, notify.OpCreate)
		}
	}
	return len(events)
}

func (c *reconciler) mark(r *Replayer, dir notify.Object, name string, op notify.Op) {
	if op == 0 {
		return
	}
	for _, p := range r.tree.NodeIDs(nil, dir) {
		c.told[nameKey{p, name}] = op
	}
}
