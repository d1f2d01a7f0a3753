package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

const (
	delayMedian = 200 * time.Microsecond
	delayWorst  = 2 * time.Millisecond
	// delayGap lets everything fall asleep again between two samples.
	delayGap = 3 * time.Millisecond
	// delayMask leaves one event to each step.
	delayMask = notify.Create | notify.Modify | notify.MovedTo | notify.Delete
)

// steps is the life of a file, one sample each.
var steps = []struct {
	name string
	mask notify.Mask
	do   func(dir string) error
}{
	{"create", notify.Create, func(dir string) error {
		return unix.Mknod(filepath.Join(dir, "a"), unix.S_IFREG|0o644, 0)
	}},
	{"modify", notify.Modify, func(dir string) error { return rewrite(filepath.Join(dir, "a"), []byte("x")) }},
	{"rename", notify.MovedTo, func(dir string) error {
		return unix.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b"))
	}},
	{"delete", notify.Delete, func(dir string) error { return unix.Unlink(filepath.Join(dir, "b")) }},
}

// ear tells when it heard of the events of one directory.
type ear struct {
	fd, wd int
	closed atomic.Bool
	done   sync.WaitGroup
	// heard has room for all that a step can cause. Its sender closes it.
	heard chan sound
}

type sound struct {
	mask notify.Mask
	at   time.Time
}

func listen(dir string) (*ear, error) {
	fd, wd, err := watch(dir, delayMask, 0)
	if err != nil {
		return nil, err
	}
	e := &ear{fd: fd, wd: wd, heard: make(chan sound, 64)}
	e.done.Go(e.read)
	return e, nil
}

// watch makes an inotify instance with one watch.
func watch(dir string, mask notify.Mask, flags int) (fd, wd int, err error) {
	fd, err = unix.InotifyInit1(unix.IN_CLOEXEC | flags)
	if err != nil {
		return -1, -1, fmt.Errorf("inotify: %w", err)
	}
	wd, err = unix.InotifyAddWatch(fd, dir, uint32(mask))
	if err != nil {
		unix.Close(fd)
		return -1, -1, fmt.Errorf("watch %s: %w", dir, err)
	}
	return fd, wd, nil
}

// read has a thread to itself, so that the delay is not that of Go's scheduler.
func (e *ear) read() {
	runtime.LockOSThread()
	defer close(e.heard)
	buf := make([]byte, 1<<14)
	for !e.closed.Load() {
		n, err := unix.Read(e.fd, buf)
		at := time.Now()
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		for _, mask := range masks(buf[:n]) {
			if mask&notify.Ignored == 0 {
				e.heard <- sound{mask, at}
			}
		}
	}
}

// masks lists the masks of a buffer of struct inotify_event.
func masks(b []byte) []notify.Mask {
	var all []notify.Mask
	for len(b) >= unix.SizeofInotifyEvent {
		all = append(all, notify.Mask(binary.NativeEndian.Uint32(b[4:])))
		b = b[unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(b[12:])):]
	}
	return all
}

// close wakes the reader with the IN_IGNORED of its own watch.
func (e *ear) close() error {
	e.closed.Store(true)
	if _, err := unix.InotifyRmWatch(e.fd, uint32(e.wd)); err != nil {
		return err
	}
	e.done.Wait()
	return unix.Close(e.fd)
}

// next waits for an event with one of the bits of mask and passes over others.
func (e *ear) next(b *bench, mask notify.Mask) (time.Time, error) {
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		select {
		case s, ok := <-e.heard:
			if !ok {
				return time.Time{}, errors.New("inotify ended")
			}
			if s.mask&mask != 0 {
				return s.at, nil
			}
		case <-late.C:
			return time.Time{}, fmt.Errorf("no %v in %v", mask, patience)
		case <-b.ctx.Done():
			return time.Time{}, b.ctx.Err()
		}
	}
}

func (b *bench) delay() error {
	t := b.report.add(
		fmt.Sprintf("Delay from the native inotify event to the guest's, idle, %d samples", b.samples),
		"what", "operation", "p50", "p99", "max", "target")
	host, err := b.source("delay")
	if err != nil {
		return err
	}
	if err := b.delayOf(t, "second native watcher", host, host); err != nil {
		return err
	}
	trips, err := b.rested(b.samples / 4)
	if err != nil {
		return err
	}
	if len(trips) > 0 {
		t.row("one FUSE request to a bare C daemon", "getattr", short(percentile(trips, 50)), short(percentile(trips, 99)), short(percentile(trips, 100)), "")
	}
	for _, backend := range []string{"fanotify", "inotify"} {
		m, err := b.heraldfs(host, "--watcher="+backend)
		if err != nil {
			return err
		}
		b.later(m.close)
		if err := b.delayOf(t, "heraldfs, "+backend, host, m.point); err != nil {
			return err
		}
	}
	t.note("Both watchers are threads of one process and read one clock. The first lines are the noise of the method: two watchers of the same directory.")
	t.note("An event takes a wake of the watcher, one of the replayer and two requests or more; what wakes cost on the machine at the moment is in the line of the bare daemon: two wakes and next to no work.")
	t.note("There is a pause of %v between two changes. A watcher that polls, as they do on mounts without events, hears after half of its interval on average.", delayGap)
	return nil
}

func (b *bench) delayOf(t *table, what, host, guest string) error {
	native, err := listen(host)
	if err != nil {
		return err
	}
	defer native.close()
	other, err := listen(guest)
	if err != nil {
		return err
	}
	defer other.close()
	taken := make([][]time.Duration, len(steps))
	const warmUp = 40
	for i := range warmUp + b.samples {
		time.Sleep(delayGap)
		step := steps[i%len(steps)]
		if err := step.do(host); err != nil {
			return err
		}
		first, err := native.next(b, step.mask)
		if err != nil {
			return fmt.Errorf("%s: native: %w", step.name, err)
		}
		second, err := other.next(b, step.mask)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", step.name, what, err)
		}
		if i >= warmUp {
			taken[i%len(steps)] = append(taken[i%len(steps)], second.Sub(first))
		}
	}
	for i, step := range steps {
		t.row(what, step.name, short(percentile(taken[i], 50)), short(percentile(taken[i], 99)), short(percentile(taken[i], 100)), "")
	}
	all := slices.Concat(taken...)
	p50, p99 := percentile(all, 50), percentile(all, 99)
	target := ""
	if host != guest {
		target = fmt.Sprintf("%s, %s: %s", short(delayMedian), short(delayWorst), verdict(p50 <= delayMedian && p99 <= delayWorst))
	}
	t.row(what, "all", short(p50), short(p99), short(percentile(all, 100)), target)
	return nil
}
