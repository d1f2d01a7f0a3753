package nettest

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/protocol"
)

// patience bounds a wait for something that must happen.
const patience = 40 * time.Second

// story is a client.Handler that remembers what a subscriber was told, and checks it against the load.
type story struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change

	stream string
	next   uint64 // where the next range must begin, 0 before the first
	file   int    // the last file that was told of
	// gap says that one was told since file.
	gap       bool
	files     int
	gaps      map[protocol.Reason]int
	wrong     []string
	connects  int
	failures  []error
	hold      chan struct{} // if not nil, Events waits until it is closed
	lastKnown uint64
}

func newStory() *story {
	return &story{changed: make(chan struct{}), gaps: make(map[protocol.Reason]int)}
}

func (s *story) did(f func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

func (s *story) fail(format string, args ...any) {
	if len(s.wrong) < 10 {
		s.wrong = append(s.wrong, fmt.Sprintf(format, args...))
	}
}

// Connected implements client.Handler.
func (s *story) Connected(sub *protocol.Subscribed) error {
	return s.did(func() {
		s.connects++
		if string(sub.Stream) != s.stream {
			s.stream, s.next = string(sub.Stream), sub.Next
		}
		if sub.Next != s.next {
			s.fail("connected at %d, want %d", sub.Next, s.next)
		}
	})
}

// Disconnected implements client.Handler.
func (s *story) Disconnected(err error, _ time.Duration) error {
	return s.did(func() { s.failures = append(s.failures, err) })
}

func (s *story) rangeLocked(first, last uint64) {
	if first != s.next {
		s.fail("range %d to %d, want one from %d on", first, last, s.next)
	}
	s.next, s.lastKnown = last+1, last
}

// Events implements client.Handler.
func (s *story) Events(m *protocol.Events) error {
	if s.hold != nil {
		<-s.hold
	}
	return s.did(func() {
		s.rangeLocked(m.First, m.Last)
		for i := range m.Events {
			if ev := &m.Events[i]; ev.Op == protocol.OpCreate {
				s.createLocked(ev.From.Path())
			}
		}
	})
}

// createLocked takes the creation of one of the load's files.
func (s *story) createLocked(path string) {
	var n int
	if _, err := fmt.Sscanf(path, fileName, &n); err != nil {
		return // not of the load
	}
	switch {
	case n <= s.file:
		s.fail("file %d after %d: doubled, or out of order", n, s.file)
	case n > s.file+1 && !s.gap:
		s.fail("files %d to %d are lost without a record", s.file+1, n-1)
	}
	s.file, s.gap = n, false
	s.files++
}

// Gap implements client.Handler.
func (s *story) Gap(g *protocol.Gap) error {
	return s.did(func() {
		s.rangeLocked(g.First, g.Last)
		s.gap = true
		s.gaps[g.Reason]++
	})
}

// wait returns when ok does, which is asked after each change.
func (s *story) wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		s.mu.Lock()
		done, changed := ok(), s.changed
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			s.mu.Lock()
			defer s.mu.Unlock()
			t.Fatalf("waited in vain for %s: %s", what, s.textLocked())
		}
	}
}

func (s *story) textLocked() string {
	var last error
	if n := len(s.failures); n > 0 {
		last = s.failures[n-1]
	}
	return fmt.Sprintf("%d files, the last is %d, sequence %d, gaps %v, %d connections, %d failures, the last: %v",
		s.files, s.file, s.lastKnown, s.gaps, s.connects, len(s.failures), last)
}

// prove waits for the last file and checks that all is told, with gaps of no other reasons than those.
func (s *story) prove(t testing.TB, files int, reasons ...protocol.Reason) {
	t.Helper()
	s.proveQuietly(t, files, reasons...)
	s.mu.Lock()
	defer s.mu.Unlock()
	t.Log(s.textLocked())
}

func (s *story) proveQuietly(t testing.TB, files int, reasons ...protocol.Reason) {
	t.Helper()
	s.wait(t, fmt.Sprintf("file %d", files), func() bool { return s.file >= files })
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.wrong) > 0 {
		t.Errorf("%s\n%s", strings.Join(s.wrong, "\n"), s.textLocked())
	}
	allowed := make(map[protocol.Reason]bool)
	for _, r := range reasons {
		allowed[r] = true
	}
	for r := range s.gaps {
		if !allowed[r] {
			t.Errorf("gaps %v", s.gaps)
		}
	}
	if len(reasons) == 0 && s.files != files {
		t.Errorf("%d files of %d", s.files, files)
	}
}

// soFar returns how many files it was told of.
func (s *story) soFar() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files
}
