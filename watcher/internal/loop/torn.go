package loop

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

const (
	// tornWait is how long the second record of an exchange is waited for. Whoever exchanges can lose the CPU between
	// the two, so this is a scheduler's measure. Hardly anything waits in vain: what stands at the old name of a
	// rename has been put there, and the record of that is on its way too.
	tornWait = 20 * time.Millisecond
	// tornReach is how many records back a rename is looked at: others write into the queue between the two.
	tornReach = 8
)

// Tearer is a Queue that tells an exchange by two records, of which the second is queued a moment after the first.
// Torn reports whether r, a rename whose old name no later record fills, may be such a first one.
type Tearer interface {
	Torn(r *notify.Raw) bool
}

// whole reads on, after a turn has read the queue to its end, if what was read may end within an exchange.
func (l *Loop) whole(raws []notify.Raw) (_ []notify.Raw, empty bool, err error) {
	t, ok := l.cfg.Queue.(Tearer)
	if !ok {
		return raws, true, nil
	}
	i := len(raws) - 1
	for ; i >= 0 && len(raws)-i <= tornReach; i-- {
		r := &raws[i]
		if r.Mask&notify.Rename != 0 && !filled(raws[i+1:], r) && !second(raws[:i], r) && t.Torn(r) {
			break
		}
	}
	if i < 0 || len(raws)-i > tornReach {
		return raws, true, nil
	}
	until, empty := time.Now().Add(tornWait), true
	for empty && !filled(raws[i+1:], &raws[i]) {
		left := time.Until(until)
		if left <= 0 {
			break
		}
		fds := [1]unix.PollFd{{Fd: int32(l.cfg.Queue.Fd()), Events: unix.POLLIN}}
		ts := unix.NsecToTimespec(left.Nanoseconds())
		_, _ = unix.Ppoll(fds[:], &ts, nil) // an error is as good as a timeout
		if raws, empty, err = l.cfg.Queue.Read(raws, l.keep); err != nil {
			return raws, false, err
		}
	}
	return raws, empty, nil
}

// filled reports whether one of raws puts something at the old name of the rename r.
func filled(raws []notify.Raw, r *notify.Raw) bool {
	for i := range raws {
		switch n := &raws[i]; {
		case n.Mask&notify.Rename != 0 && n.NewDir == r.Dir && n.NewName == r.Name,
			n.Mask&notify.Create != 0 && n.Dir == r.Dir && n.Name == r.Name:
			return true
		}
	}
	return false
}

// second reports whether the rename r is the second of an exchange: an odd number of renames between its two names came
// before it.
func second(raws []notify.Raw, r *notify.Raw) bool {
	odd := false
	for i := range raws {
		n := &raws[i]
		if n.Mask&notify.Rename == 0 {
			continue
		}
		same := n.Name == r.Name && n.NewName == r.NewName && n.Dir == r.Dir && n.NewDir == r.NewDir
		back := n.Name == r.NewName && n.NewName == r.Name && n.Dir == r.NewDir && n.NewDir == r.Dir
		if same || back {
			odd = !odd
		}
	}
	return odd
}
