package replay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// bell wakes a thread that sleeps in a system call: the kernel does it directly, where a
// channel would take the scheduler's way round.
type bell int

func newBell() (bell, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("eventfd: %w", err)
	}
	return bell(fd), nil
}

func (b bell) ring() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	for {
		if _, err := unix.Write(int(b), one[:]); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// wait sleeps until somebody rings, or for timeout if that is not zero.
func (b bell) wait(timeout time.Duration) {
	var ts *unix.Timespec
	if timeout > 0 {
		t := unix.NsecToTimespec(timeout.Nanoseconds())
		ts = &t
	}
	fds := [1]unix.PollFd{{Fd: int32(b), Events: unix.POLLIN}}
	if n, _ := unix.Ppoll(fds[:], ts, nil); n > 0 {
		var buf [8]byte
		_, _ = unix.Read(int(b), buf[:])
	}
}

func (b bell) close() { unix.Close(int(b)) }

// maxPosted is how many jobs may be put before the servant is woken for them.
const maxPosted = 128

// servant does for the replayer's thread what needs the process's descriptors: questions to
// the wrapped file system, notifications, the log. Jobs are done in the order in which they were
// put; only the replayer's thread puts any.
type servant struct {
	work, done bell
	ended      chan struct{}
	// served counts the jobs that are done; wanted, if not zero, is how many of them the replayer
	// waits for.
	served, wanted atomic.Uint64
	// put and trips count the jobs and the times that somebody waited for some. They are the replayer's.
	put, trips uint64

	mu     sync.Mutex
	jobs   []func()
	sleeps bool
	quit   bool
}

func newServant() (*servant, error) {
	s := &servant{ended: make(chan struct{})}
	var err error
	if s.work, err = newBell(); err != nil {
		return nil, err
	}
	if s.done, err = newBell(); err != nil {
		s.work.close()
		return nil, err
	}
	go s.serve()
	return s, nil
}

func (s *servant) serve() {
	defer close(s.ended)
	var jobs []func()
	for s.next(&jobs) {
		for i, do := range jobs {
			do()
			jobs[i] = nil
			s.served.Add(1)
		}
		if n := s.wanted.Load(); n > 0 && s.served.Load() >= n {
			s.done.ring()
		}
	}
}

// next swaps *jobs for what was put, waiting for some. It returns false when there is no more to come.
func (s *servant) next(jobs *[]func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.jobs) == 0 {
		if s.quit {
			return false
		}
		s.sleeps = true
		s.mu.Unlock()
		s.work.wait(0)
		s.mu.Lock()
		s.sleeps = false
	}
	*jobs, s.jobs = s.jobs, (*jobs)[:0]
	return true
}

// add puts a job and returns how many are put and not begun.
func (s *servant) add(do func()) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jobs = append(s.jobs, do)
	s.put++
	return len(s.jobs)
}

// run has do done and waits for it. A servant that is nil is not needed.
func (s *servant) run(do func()) {
	if s == nil {
		do()
		return
	}
	s.add(do)
	s.await()
}

// await waits until all that was put is done.
func (s *servant) await() {
	if s == nil {
		return
	}
	if s.served.Load() == s.put {
		return
	}
	s.trips++
	s.wanted.Store(s.put)
	s.flush()
	for s.served.Load() < s.put {
		s.done.wait(0)
	}
	s.wanted.Store(0)
}

// post has do done at the latest with the next job that is waited for, or at flush.
func (s *servant) post(do func()) {
	if s == nil {
		do()
		return
	}
	if s.add(do) >= maxPosted {
		s.await()
	}
}

// flush has the servant do what was posted.
func (s *servant) flush() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.jobs) > 0 && s.sleeps {
		s.sleeps = false
		s.work.ring()
	}
}

// stop ends the servant when all jobs are done. Nothing may be put any more.
func (s *servant) stop() {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.quit = true
	s.sleeps = false
	s.work.ring()
	s.mu.Unlock()
	<-s.ended
	s.work.close()
	s.done.close()
}
