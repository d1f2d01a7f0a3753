package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// ear is an inotify watcher that remembers all it hears.
type ear struct {
	t       testing.TB
	file    *os.File
	done    chan struct{}
	cookies map[uint32]int

	mu     sync.Mutex
	grew   *sync.Cond
	labels map[int32]string
	wds    map[string]int
	heard  []sound
}

// sound is one event: the watch it came from and what it said.
type sound struct{ watch, text string }

// listen watches dir and the named directories and files below it.
func listen(t testing.TB, dir string, mask notify.Mask, names ...string) *ear {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	check(t, err)
	e := &ear{
		t: t, file: os.NewFile(uintptr(fd), "inotify"), done: make(chan struct{}),
		labels: make(map[int32]string), cookies: make(map[uint32]int), wds: make(map[string]int),
	}
	e.grew = sync.NewCond(&e.mu)
	for _, name := range append([]string{"."}, names...) {
		wd, err := unix.InotifyAddWatch(fd, filepath.Join(dir, name), uint32(mask))
		if err != nil {
			t.Fatalf("watch %s: %v", filepath.Join(dir, name), err)
		}
		e.labels[int32(wd)], e.wds[name] = name, wd
	}
	go e.run()
	t.Cleanup(e.close)
	return e
}

func (e *ear) close() {
	e.file.Close()
	<-e.done
}

func (e *ear) run() {
	defer close(e.done)
	buf := make([]byte, 1<<16)
	for {
		n, err := e.file.Read(buf)
		if err != nil {
			return
		}
		e.mu.Lock()
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
			e.addLocked(b[:size])
			b = b[size:]
		}
		e.grew.Broadcast()
		e.mu.Unlock()
	}
}

func (e *ear) addLocked(b []byte) {
	watch := e.labels[int32(binary.NativeEndian.Uint32(b))]
	mask := notify.Mask(binary.NativeEndian.Uint32(b[4:]))
	cookie := binary.NativeEndian.Uint32(b[8:])
	text := mask.String()
	if name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:]), "\x00"); name != "" {
		text += " " + name
	}
	if cookie != 0 {
		if e.cookies[cookie] == 0 {
			e.cookies[cookie] = len(e.cookies) + 1
		}
		text += fmt.Sprintf(" (%d)", e.cookies[cookie])
	}
	e.heard = append(e.heard, sound{watch, text})
}

// has reports whether text was heard on a watch.
func (e *ear) has(watch, text string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Contains(e.heard, sound{watch, text})
}

// wait returns when text was heard on a watch.
func (e *ear) wait(watch, text string) {
	e.t.Helper()
	late := time.Now().Add(patience)
	timer := time.AfterFunc(patience, func() {
		e.mu.Lock()
		e.grew.Broadcast()
		e.mu.Unlock()
	})
	defer timer.Stop()
	e.mu.Lock()
	defer e.mu.Unlock()
	for !slices.Contains(e.heard, sound{watch, text}) {
		if !time.Now().Before(late) {
			e.t.Fatalf("%q was not heard on %q; only:\n%s", text, watch, lines(e.heard))
		}
		e.grew.Wait()
	}
}

// story returns what each watch heard, in order. Equal neighbours are one: the kernel folds
// them while they are unread, and whether they were is a matter of speed.
func (e *ear) story() map[string][]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make(map[string][]string)
	for _, s := range e.heard {
		if l := out[s.watch]; len(l) > 0 && l[len(l)-1] == s.text {
			continue
		}
		out[s.watch] = append(out[s.watch], s.text)
	}
	return out
}

// count returns how often text was heard on a watch.
func (e *ear) count(watch, text string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, s := range e.heard {
		if s == (sound{watch, text}) {
			n++
		}
	}
	return n
}

func lines(heard []sound) string {
	var b strings.Builder
	for _, s := range heard {
		fmt.Fprintf(&b, "  %-10s %s\n", s.watch, s.text)
	}
	return b.String()
}
