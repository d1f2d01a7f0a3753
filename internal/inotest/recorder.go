package inotest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/notify"
	"golang.org/x/sys/unix"
)

// readSize is large so that one read usually empties the queue.
const readSize = 1 << 20

// Options adjusts a Recorder. Its zero value works.
type Options struct {
	// Timeout is how long WaitFor waits; 0 is 20 seconds.
	Timeout time.Duration
}

// Recorder is one inotify instance. Its methods may be used from several goroutines.
type Recorder struct {
	t       testing.TB
	timeout time.Duration
	file    *os.File
	done    chan struct{}

	mu      sync.Mutex
	changed *sync.Cond
	labels  map[int32]string // by watch descriptor; those are not reused
	events  []event
	err     error
	// sentinels are the names that have been waited for. Events of theirs can
	// still come.
	sentinels map[string]bool
}

// event is what the kernel said. The label is found later: an event can be read before
// inotify_add_watch has returned to whoever asked for it.
type event struct {
	wd     int32
	mask   notify.Mask
	cookie uint32
	name   string
	at     time.Time
}

// New starts a recorder that ends with the test.
func New(t testing.TB, opts Options) *Recorder {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatalf("inotify_init1: %v", err)
	}
	r := &Recorder{
		t: t, timeout: opts.Timeout, file: os.NewFile(uintptr(fd), "inotify"),
		done: make(chan struct{}), labels: map[int32]string{}, sentinels: map[string]bool{},
	}
	if r.timeout <= 0 {
		r.timeout = 20 * time.Second
	}
	r.changed = sync.NewCond(&r.mu)
	go r.read()
	t.Cleanup(r.Close)
	return r
}

// Close ends the recording; what was recorded stays. Idempotent.
func (r *Recorder) Close() {
	r.file.Close()
	<-r.done
}

// Watch records what happens to the directory or file at path (and not to what a symlink there
// points to) as label. A zero mask is notify.DefaultMask. One file cannot have two labels.
func (r *Recorder) Watch(path, label string, mask notify.Mask) {
	r.t.Helper()
	if mask == 0 {
		mask = notify.DefaultMask
	}
	raw, err := r.file.SyscallConn()
	if err != nil {
		r.t.Fatalf("watch %s: %v", path, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var wd int
	ctlErr := raw.Control(func(fd uintptr) {
		wd, err = unix.InotifyAddWatch(int(fd), path, uint32(mask)|unix.IN_DONT_FOLLOW)
	})
	if err = errors.Join(ctlErr, err); err != nil {
		r.t.Fatalf("watch %s: %v", path, err)
	}
	if old, ok := r.labels[int32(wd)]; ok {
		r.t.Fatalf("watch %s as %q: it is watched as %q already", path, label, old)
	}
	r.labels[int32(wd)] = label
}

// WaitFor waits for an event with the name of a sentinel that the test has made in a
// watched directory, and returns what was recorded before it since the last sentinel. Events
// of sentinels are never returned, so use each name once, and from one goroutine.
func (r *Recorder) WaitFor(sentinel string) []Record {
	r.t.Helper()
	// A watchdog wakes us up; what ends the wait is the sentinel.
	watchdog := time.AfterFunc(r.timeout, func() {
		r.fail(fmt.Errorf("the sentinel %q has not been heard of in %v", sentinel, r.timeout))
	})
	defer watchdog.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sentinels[sentinel] = true
	seen := 0
	for {
		for ; seen < len(r.events); seen++ {
			if r.events[seen].name == sentinel {
				records := r.recordsLocked(r.events[:seen])
				r.events = r.events[seen+1:]
				return records
			}
		}
		if r.err != nil {
			r.t.Fatalf("%v; heard so far:\n%s", r.err, Format(r.recordsLocked(r.events)))
		}
		r.changed.Wait()
	}
}

// Records returns what was recorded since the last sentinel, so far.
func (r *Recorder) Records() []Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.recordsLocked(r.events)
}

func (r *Recorder) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
	r.changed.Broadcast()
}

// read moves events from the kernel's queue to ours until the descriptor is closed.
func (r *Recorder) read() {
	defer close(r.done)
	buf := make([]byte, readSize)
	for {
		n, err := r.file.Read(buf)
		at := time.Now()
		if err != nil {
			r.fail(fmt.Errorf("inotify: %w", err))
			return
		}
		events, err := parse(buf[:n], at)
		r.mu.Lock()
		r.events = append(r.events, events...)
		r.changed.Broadcast()
		r.mu.Unlock()
		if err != nil {
			r.fail(err)
			return
		}
	}
}

// parse reads a buffer of
//
//	struct inotify_event {
//		int      wd;
//		uint32_t mask;
//		uint32_t cookie;
//		uint32_t len;
//		char     name[];
//	};
func parse(buf []byte, at time.Time) ([]event, error) {
	var events []event
	for len(buf) > 0 {
		if len(buf) < unix.SizeofInotifyEvent {
			return events, fmt.Errorf("inotify: %d bytes are no event", len(buf))
		}
		order := binary.NativeEndian
		ev := event{
			wd: int32(order.Uint32(buf)), mask: notify.Mask(order.Uint32(buf[4:])),
			cookie: order.Uint32(buf[8:]), at: at,
		}
		size := int(order.Uint32(buf[12:]))
		buf = buf[unix.SizeofInotifyEvent:]
		if size > len(buf) {
			return events, fmt.Errorf("inotify: a name of %d bytes in %d", size, len(buf))
		}
		ev.name = string(bytes.TrimRight(buf[:size], "\x00"))
		buf = buf[size:]
		events = append(events, ev)
	}
	return events, nil
}
