//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// fence is the name of the file that ends the demo.
const fence = "the-end"

// heard is one inotify event as the demo prints it.
type heard struct {
	// watch is the directory whose watch it came from: a kernel orders the events of one
	// watch; between two it depends on who else has the directory open.
	watch string
	text  string
	at    time.Time
}

// ear is a plain inotify watcher, as a program in the guest would have.
type ear struct {
	fd      int
	stop    int
	done    sync.WaitGroup
	labels  map[int32]string
	cookies map[uint32]int

	mu     sync.Mutex
	grew   *sync.Cond
	events []heard
}

// newEar watches dir and the named directories in it.
func newEar(dir string, names ...string) (*ear, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	e := &ear{fd: fd, stop: stop, labels: make(map[int32]string), cookies: make(map[uint32]int)}
	e.grew = sync.NewCond(&e.mu)
	for _, name := range append([]string{""}, names...) {
		wd, err := unix.InotifyAddWatch(fd, filepath.Join(dir, name), uint32(notify.DefaultMask))
		if err != nil {
			unix.Close(fd)
			unix.Close(stop)
			return nil, fmt.Errorf("watch %s: %w", filepath.Join(dir, name), err)
		}
		e.labels[int32(wd)] = name
	}
	e.done.Go(e.listen)
	return e, nil
}

func (e *ear) listen() {
	buf := make([]byte, 1<<16)
	fds := []unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}, {Fd: int32(e.stop), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		n, err := unix.Read(e.fd, buf)
		if err != nil || n <= 0 {
			continue
		}
		at := time.Now()
		e.mu.Lock()
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
			e.addLocked(b[:size], at)
			b = b[size:]
		}
		e.grew.Broadcast()
		e.mu.Unlock()
	}
}

func (e *ear) addLocked(b []byte, at time.Time) {
	wd := int32(binary.NativeEndian.Uint32(b))
	mask := notify.Mask(binary.NativeEndian.Uint32(b[4:]))
	cookie := binary.NativeEndian.Uint32(b[8:])
	name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:]), "\x00")
	text := mask.String() + " " + filepath.Join(e.labels[wd], name)
	if cookie != 0 {
		if e.cookies[cookie] == 0 {
			e.cookies[cookie] = len(e.cookies) + 1
		}
		text += fmt.Sprintf(" (cookie %d)", e.cookies[cookie])
	}
	// The kernel folds equal neighbours while they are unread; whether they
	// were is a matter of speed.
	text = strings.TrimSpace(text)
	if n := len(e.events); n > 0 && e.events[n-1].text == text {
		return
	}
	e.events = append(e.events, heard{e.labels[wd], text, at})
}

func (e *ear) len() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.events)
}

// since returns what was heard from the i-th event on, watch by watch.
func (e *ear) since(i int) []heard {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := append([]heard(nil), e.events[i:]...)
	slices.SortStableFunc(out, func(a, b heard) int { return strings.Compare(a.watch, b.watch) })
	return out
}

// waitFor returns when an event of this name was heard.
func (e *ear) waitFor(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	wake := context.AfterFunc(ctx, func() {
		e.mu.Lock()
		e.grew.Broadcast()
		e.mu.Unlock()
	})
	defer wake()
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		for _, h := range e.events {
			if strings.HasSuffix(h.text, " "+name) {
				return nil
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("the last event was not heard: %w", ctx.Err())
		}
		e.grew.Wait()
	}
}

// close ends the watcher.
func (e *ear) close() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	unix.Write(e.stop, one[:])
	e.done.Wait()
	unix.Close(e.fd)
	unix.Close(e.stop)
}

// waitEqual pauses for at least pace, and then until the guest has heard as much as the
// native watcher, a second at most: what is missing shows in the comparison.
func waitEqual(ctx context.Context, native, guest *ear, pace time.Duration) {
	step := min(max(pace, time.Millisecond), 10*time.Millisecond)
	for waited := time.Duration(0); waited < time.Second; waited += step {
		select {
		case <-ctx.Done():
			return
		case <-time.After(step):
		}
		if waited+step >= pace && native.len() == guest.len() {
			return
		}
	}
}
