package replay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
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

// servant does for the replayer's thread what needs the process's descriptors: questions to
// the wrapped file system, notifications, the log. One job at a time; the caller waits.
type servant struct {
	work, done bell
	job        atomic.Pointer[job]
	ended      chan struct{}
}

type job struct {
	do       func()
	finished atomic.Bool
	quit     bool
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
	for {
		s.work.wait(0)
		j := s.job.Swap(nil)
		if j == nil {
			continue
		}
		if j.quit {
			return
		}
		j.do()
		j.finished.Store(true)
		s.done.ring()
	}
}

// run has do done and waits for it.
func (s *servant) run(do func()) {
	j := &job{do: do}
	s.job.Store(j)
	s.work.ring()
	for !j.finished.Load() {
		s.done.wait(0)
	}
}

// stop ends the servant. Nothing may call run any more.
func (s *servant) stop() {
	s.job.Store(&job{quit: true})
	s.work.ring()
	<-s.ended
	s.work.close()
	s.done.close()
}

// remote is a Tree, a Notifier and the rest of what the replayer's thread must not
// touch itself, by way of a servant. NodeIDs and Object are memory only and
// are asked directly.
type remote struct {
	Tree
	serve  *servant
	raw    interface{ Forget(nodeid, nlookup uint64) }
	notify Notifier
	files  notify.FileMarker
}
