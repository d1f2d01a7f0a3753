package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// hearing is somebody who hears of changes, and what that costs.
type hearing struct {
	count atomic.Int64 // events told
	last  atomic.Int64 // when, UnixNano
	// next gets the time of an event if there is room.
	next chan time.Time
	// cpu is the time that whoever makes the events arrive has used so far.
	cpu  func() (time.Duration, error)
	stop func() error
	done sync.WaitGroup
}

func newHearing() *hearing { return &hearing{next: make(chan time.Time, 1)} }

func (h *hearing) heard(n int) {
	now := time.Now()
	h.last.Store(now.UnixNano())
	h.count.Add(int64(n))
	select {
	case h.next <- now:
	default:
	}
}

// byInotify hears by a watch on dir for events of mask. The thread's own time is the cost of hearing natively.
func (h *hearing) byInotify(dir string, mask notify.Mask) (tid int, stop func() error, err error) {
	fd, wd, err := watch(dir, mask, 0)
	if err != nil {
		return 0, nil, err
	}
	var closed atomic.Bool
	thread := make(chan int)
	h.done.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		buf := make([]byte, 64<<10)
		for !closed.Load() {
			n, err := unix.Read(fd, buf)
			if err != nil {
				if errors.Is(err, unix.EINTR) {
					continue
				}
				return
			}
			told := 0
			for _, m := range masks(buf[:n]) {
				if m&mask != 0 && m&notify.Ignored == 0 {
					told++
				}
			}
			if told > 0 {
				h.heard(told)
			}
		}
	})
	return <-thread, func() error {
		closed.Store(true)
		_, err := unix.InotifyRmWatch(fd, uint32(wd))
		h.done.Wait()
		return errors.Join(err, unix.Close(fd))
	}, nil
}

// byLines hears by the output of a process; count says how many events a line tells.
func (b *bench) byLines(word string, hook func(*exec.Cmd, *os.File), count func(line string) int, argv ...string) (*hearing, *process, error) {
	h := newHearing()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer w.Close()
	h.done.Go(func() {
		defer r.Close()
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, 1<<22)
		for lines.Scan() {
			if n := count(lines.Text()); n > 0 {
				h.heard(n)
			}
		}
	})
	p, err := b.start(word, func(c *exec.Cmd, f *os.File) {
		hook(c, f)
		c.Stdout = w
	}, argv...)
	if err != nil {
		w.Close()
		h.done.Wait()
		return nil, nil, err
	}
	p.lax = true
	h.cpu = func() (time.Duration, error) { return cpuOf(p.cmd.Process.Pid) }
	h.stop = func() error { return p.stop(unix.SIGTERM) }
	return h, p, nil
}

// cpuOf is the time that a process's threads have used: the first number of proc_pid_schedstat(5). Threads that have ended
// are not in it.
func cpuOf(pid int) (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, file := range files {
		d, err := schedstat(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

func cpuOfThread(tid int) (time.Duration, error) {
	return schedstat(fmt.Sprintf("/proc/self/task/%d/schedstat", tid))
}

func schedstat(file string) (time.Duration, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), " ")
	ns, err := strconv.ParseInt(first, 10, 64)
	return time.Duration(ns), err
}

// cpuOfFamily is cpuOf for a shell, its running children, and all that it has waited for. The
// last are counted in ticks of 10 ms, so they should be many.
func cpuOfFamily(pid int) (time.Duration, error) {
	sum, err := cpuOf(pid)
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	for word := range strings.FieldsSeq(string(text)) {
		child, err := strconv.Atoi(word)
		if err != nil {
			return 0, err
		}
		d, err := cpuOfFamily(child)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		sum += d
	}
	text, err = os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name is in parentheses; cutime and cstime are the 14th and 15th field behind it.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 15 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	for _, ticks := range fields[13:15] {
		n, err := strconv.Atoi(ticks)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum, nil
}
