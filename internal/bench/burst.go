package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

const (
	// burstSize stays below fs.inotify.max_queued_events, 16,384 by default, so
	// that neither the guest's queue nor that of the inotify backend overflows.
	burstSize   = 15000
	burstRounds = 5

	modifyTarget = 25000
	createTarget = 10000
)

// kind is a sort of change that a burst consists of.
type kind struct {
	name   string
	mask   notify.Mask
	target float64
	do     func(i int) error
}

// burst measures how fast changes that come all at once are replayed.
func (b *bench) burst() error {
	t := b.report.add(
		fmt.Sprintf("Replay throughput: %d changes at once in a directory that the guest knows, until `sync` returns", burstSize),
		"watcher", "change", "host alone", "until delivered", "events/s", "slowest round", "heard", "target")
	for _, backend := range []string{"fanotify", "inotify"} {
		depth := len(b.undo)
		if err := errors.Join(b.burstOf(t, backend), b.unwind(depth)); err != nil {
			return err
		}
	}
	t.note("Medians of %d rounds. \"host alone\" is what the system calls themselves took. It runs beside the replay, on the same two CPUs. \"heard\" is the fewest events that the guest's watcher got in a round.", burstRounds)
	t.note("A file that is created by opening it makes two events, CREATE and CLOSE_WRITE; one is counted.")
	return nil
}

func (b *bench) burstOf(t *table, backend string) error {
	host, err := b.source("burst-" + backend)
	if err != nil {
		return err
	}
	files := make([]*os.File, burstSize)
	for i := range files {
		if files[i], err = os.Create(filepath.Join(host, fmt.Sprintf("f%d", i))); err != nil {
			return err
		}
		defer files[i].Close()
		if _, err := files[i].Write([]byte("x")); err != nil {
			return err
		}
	}
	m, err := b.heraldfs(host, "--watcher="+backend)
	if err != nil {
		return err
	}
	b.later(m.close)
	if _, _, err := lstatWalk(m.point); err != nil {
		return err
	}
	fresh := func(i int) string { return filepath.Join(host, fmt.Sprintf("new%d", i)) }
	kinds := []kind{
		{"modify", notify.Modify, modifyTarget, func(i int) error {
			_, err := files[i].WriteAt([]byte("y"), 0)
			return err
		}},
		{"create (mknod)", notify.Create, createTarget, func(i int) error { return unix.Mknod(fresh(i), unix.S_IFREG|0o644, 0) }},
		{"rename", notify.MovedTo, 0, func(i int) error { return unix.Rename(fresh(i), fresh(i)+"x") }},
		{"delete", notify.Delete, 0, func(i int) error { return unix.Unlink(fresh(i) + "x") }},
		{"create (open, close)", notify.Create, createTarget, func(i int) error {
			f, err := os.Create(fresh(i))
			if err != nil {
				return err
			}
			return f.Close()
		}},
		{"delete", 0, 0, func(i int) error { return unix.Unlink(fresh(i)) }},
	}
	results := make([]struct {
		alone, whole []time.Duration
		heard        int
	}, len(kinds))
	for round := range burstRounds {
		for k, kind := range kinds {
			if b.ctx.Err() != nil {
				return b.ctx.Err()
			}
			alone, whole, heard, err := oneBurst(m, kind)
			if err != nil {
				return fmt.Errorf("%s: %w", kind.name, err)
			}
			r := &results[k]
			if round == 0 {
				r.heard = heard
			}
			r.alone, r.whole, r.heard = append(r.alone, alone), append(r.whole, whole), min(r.heard, heard)
		}
	}
	for k, kind := range kinds {
		if kind.mask == 0 {
			continue
		}
		r := results[k]
		rate := burstSize / median(r.whole).Seconds()
		target := ""
		if kind.target > 0 {
			target = fmt.Sprintf("%.0f/s: %s", kind.target, verdict(rate >= kind.target && r.heard == burstSize))
		}
		t.row(backend, kind.name, short(median(r.alone)), short(median(r.whole)), fmt.Sprintf("%.0f", rate),
			fmt.Sprintf("%.0f", burstSize/slices.Max(r.whole).Seconds()), fmt.Sprintf("%d", r.heard), target)
	}
	return nil
}

func oneBurst(m *mount, k kind) (alone, whole time.Duration, heard int, err error) {
	fd := -1
	if k.mask != 0 {
		if fd, _, err = watch(m.point, k.mask, unix.IN_NONBLOCK); err != nil {
			return 0, 0, 0, err
		}
		defer unix.Close(fd)
	}
	if err := m.sync(); err != nil {
		return 0, 0, 0, err
	}
	began := time.Now()
	for i := range burstSize {
		if err := k.do(i); err != nil {
			return 0, 0, 0, err
		}
	}
	alone = time.Since(began)
	if err := m.sync(); err != nil {
		return 0, 0, 0, err
	}
	whole = time.Since(began)
	if fd >= 0 {
		heard, err = count(fd, k.mask)
	}
	return alone, whole, heard, err
}

// count reads what a non-blocking inotify descriptor has queued.
func count(fd int, mask notify.Mask) (int, error) {
	buf := make([]byte, 1<<20)
	heard := 0
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EAGAIN:
			return heard, nil
		case err == unix.EINTR:
			continue
		case err != nil:
			return heard, err
		}
		for _, m := range masks(buf[:n]) {
			if m&notify.QOverflow != 0 {
				return heard, errors.New("the guest's inotify queue overflowed; raise fs.inotify.max_queued_events")
			}
			if m&mask != 0 {
				heard++
			}
		}
	}
}
