package fusedev

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/heraldfs/heraldfs/internal/sys"
	"golang.org/x/sys/unix"
)

// tendEvery is how long a queue may stand still before it is helped, and tendSeldom how long if that has brought nothing.
const (
	tendEvery  = time.Millisecond
	tendSeldom = time.Second
	// inVain is after how many requests of ours that brought nothing the kernel keeps nothing back.
	inVain = 4
	// enough answers have fetched all that waited when they began.
	enough = 1024
	// maxAsking bounds those that wait for an answer.
	maxAsking = 4
)

// tending is who looks after a queue.
type tending struct {
	calls  atomic.Int64 // of tend, since whoever looks after the queue began
	asking atomic.Int64
}

// tend sees to requests that the kernel keeps back, after a worker has come. While no entry is free it lets requests wait, and a
// new entry does not get them: only an answer fetches the next. As a rule one comes soon. But all who are
// busy may be waiting for something, and be it for what one of those requests brings.
func (q *queue) tend() {
	if q.tending.calls.Add(1) > 1 {
		return
	}
	q.all.c.running.Go(func() {
		for {
			n := q.tending.calls.Load()
			q.help()
			if q.tending.calls.Add(-n) == 0 {
				return
			}
		}
	})
}

// help returns when the kernel keeps nothing back. While the queue stands still it makes requests of its own, which a free entry
// gets: the answer fetches the first that waits, and that one's answer the next. What that has brought is known only
// later, so it goes on for some time, more and more seldom.
func (q *queue) help() {
	wait := tendEvery
	timer := time.NewTimer(wait)
	defer timer.Stop()
	calls, vain, quiet, base := int64(0), 0, 0, int64(0)
	for before := int64(-1); ; timer.Reset(wait) {
		select {
		case <-timer.C:
		case <-q.all.c.dead:
			return
		}
		now := q.answers.Load()
		switch n := q.tending.calls.Load(); {
		case n != calls:
			calls, base, vain, wait = n, now, 0, tendEvery
		case now-base > enough:
			return
		case now > before+1:
			vain, wait = 0, tendEvery
		default:
			wait = min(2*wait, tendSeldom)
		}
		moved := now != before
		before = now
		// Somebody may be between an answer and the next request when nobody is busy, but not twice.
		if quiet++; q.busy.Load() > 0 {
			quiet = 0
		}
		if quiet > 1 {
			return
		}
		switch idle := q.idle.Load(); {
		case idle > 0 && q.tending.asking.Load() < maxAsking && (!moved || vain > 0):
			if vain++; vain > inVain {
				return
			}
			q.askLater()
		case idle <= 0 && q.starting.Load() <= 0:
			q.more()
		}
	}
}

// askLater makes a request and does not wait for it: if somebody takes the free entry first, it waits for the next worker as well.
func (q *queue) askLater() {
	q.tending.asking.Add(1)
	q.all.c.running.Go(func() {
		defer q.tending.asking.Add(-1)
		if err := sys.OwnThread(q.ask); err != nil {
			q.all.c.log.Debug("requests may wait until the next one on their CPU", "cpu", q.id, "err", err)
		}
	})
}

// ask makes a request on the queue's CPU. Its thread has descriptors of its own, like everyone who waits for his own process.
func (q *queue) ask() error {
	if err := sys.Detach(); err != nil {
		return err
	}
	c := q.all.c
	fd, path, flags := unix.AT_FDCWD, c.point, unix.AT_STATX_FORCE_SYNC|unix.AT_NO_AUTOMOUNT
	if c.direct {
		// So as not to keep the mount busy.
		root, err := unix.OpenTree(unix.AT_FDCWD, c.point, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_NO_AUTOMOUNT)
		if err != nil {
			return fmt.Errorf("open_tree %s: %w", c.point, err)
		}
		defer unix.Close(root)
		fd, path, flags = root, "", flags|unix.AT_EMPTY_PATH
	}
	var set unix.CPUSet
	set.Set(int(q.id))
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("sched_setaffinity: %w", err)
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, path, flags, unix.STATX_CTIME, &st); err != nil {
		return fmt.Errorf("statx %s: %w", c.point, err)
	}
	if st.Dev_major != c.id.major || st.Dev_minor != c.id.minor {
		return fmt.Errorf("%s is another file system by now", c.point)
	}
	return nil
}
