package fusedev

import (
	"fmt"
	"time"

	"github.com/heraldfs/heraldfs/internal/sys"
	"golang.org/x/sys/unix"
)

// tendEvery is how long a queue may stand still before it is helped, and tendSeldom how long if that has brought nothing.
const (
	tendEvery  = time.Millisecond
	tendSeldom = time.Second
)

// tend sees to requests that the kernel keeps back, after a worker has come. While no entry is free it lets requests wait, and a
// new entry does not get them: only an answer fetches the next. As a rule one comes soon. But all who are
// busy may be waiting for something, and be it for what one of those requests brings.
func (q *queue) tend() {
	if q.tends.Add(1) > 1 {
		return
	}
	q.all.c.running.Go(func() {
		for {
			n := q.tends.Load()
			q.help()
			if q.tends.Add(-n) == 0 {
				return
			}
		}
	})
}

// help returns when nobody is busy, so that the kernel keeps nothing back. While the queue stands still it makes requests of
// its own, which a free entry gets: the answer fetches the first that waits, and that one's answer the next. What that has
// brought is known only later, so it goes on, but more and more seldom if it brings nothing.
func (q *queue) help() {
	wait := tendEvery
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for before, asked := int64(-1), int64(0); ; timer.Reset(wait) {
		select {
		case <-timer.C:
		case <-q.all.c.dead:
			return
		}
		now := q.answers.Load()
		switch {
		case q.busy.Load() == 0:
			return
		case now > before+asked:
			wait = tendEvery
		default:
			wait = min(2*wait, tendSeldom)
		}
		asked = 0
		if now == before || wait > tendEvery {
			asked = 1
			// Not waited for: if somebody takes the free entry first, ours waits for the next worker as well.
			q.all.c.running.Go(func() {
				if err := sys.OwnThread(q.ask); err != nil {
					q.all.c.log.Debug("requests may wait until the next one on their CPU", "cpu", q.id, "err", err)
				}
			})
		}
		before = now
	}
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
	return unix.Statx(fd, path, flags, unix.STATX_CTIME, new(unix.Statx_t))
}
