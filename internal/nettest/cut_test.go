package nettest

import (
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/protocol"
)

// TestCut: the link is taken down under load, for so short a time that connections survive it and for so long
// that they do not. Nothing is lost and nothing comes twice.
func TestCut(t *testing.T) {
	need(t)
	b := newBed(t, veth(t))
	stories := make([]*story, 3)
	for i := range stories {
		stories[i] = newStory()
		subscribe(t, b.options(), stories[i])
	}
	l := startLoad(t, b.src)
	for i := range 4 {
		for _, s := range stories {
			progress(t, s)
		}
		b.net.cut(t)
		if i%2 == 0 {
			// Until everybody has noticed; otherwise it is mended at once.
			for _, s := range stories {
				s.mu.Lock()
				n := len(s.failures)
				s.mu.Unlock()
				s.wait(t, "the end of a connection", func() bool { return len(s.failures) > n })
			}
		}
		b.net.mend(t)
	}
	for _, s := range stories {
		progress(t, s)
	}
	n := l.finish(t)
	for _, s := range stories {
		s.prove(t, n)
		if s.connects < 3 {
			t.Errorf("%d connections: the cuts were not noticed", s.connects)
		}
	}
}

// TestBadLink: packets overtake each other, are lost and come twice, and twice the link is dead for a while.
func TestBadLink(t *testing.T) {
	need(t)
	link := &badLink{jitter: 8 * time.Millisecond, loss: 10, twice: 10}
	b := newBed(t, bad(t, link))
	s, folding := newStory(), newStory()
	subscribe(t, b.options(), s)
	o := b.options()
	o.Subscribe.Compact, o.Subscribe.Window = protocol.CompactBehind, 2
	subscribe(t, o, folding)
	l := startLoad(t, b.src)
	for range 2 {
		progress(t, s)
		link.dead.Store(true)
		s.mu.Lock()
		n := len(s.failures)
		s.mu.Unlock()
		s.wait(t, "the end of a connection", func() bool { return len(s.failures) > n })
		link.dead.Store(false)
	}
	progress(t, s)
	n := l.finish(t)
	s.prove(t, n)
	folding.prove(t, n) // files with different names cannot be folded
	t.Logf("%d packets were overtaken, %d lost, %d doubled", link.overtaken.Load(), link.lost.Load(), link.doubled.Load())
	if link.overtaken.Load() < 20 || link.lost.Load() < 5 || link.doubled.Load() < 5 {
		t.Error("the link was too good")
	}
}
