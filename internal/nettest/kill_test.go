package nettest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/protocol"
)

// TestKillServer: the server is killed, and told to end, under load, and continues from its journal on disk.
// Each time there is one gap, for what happened meanwhile, and nothing else is missing.
func TestKillServer(t *testing.T) {
	need(t)
	b := newBed(t, veth(t), "--journal", t.TempDir())
	first, second := newStory(), newStory()
	subscribe(t, b.options(), first)
	o := b.options()
	o.Since = nil
	subscribe(t, o, second)
	second.wait(t, "a connection", func() bool { return second.connects > 0 })
	l := startLoad(t, b.src)
	const restarts = 3
	for i := range restarts {
		progress(t, first)
		progress(t, second)
		b.server.end([]unix.Signal{unix.SIGKILL, unix.SIGTERM}[i%2])
		b.serve()
	}
	progress(t, first)
	n := l.finish(t)
	for _, s := range []*story{first, second} {
		s.prove(t, n, protocol.GapRestart)
		if s.gaps[protocol.GapRestart] != restarts || s.connects <= restarts {
			t.Errorf("%d gaps and %d connections in %d restarts", s.gaps[protocol.GapRestart], s.connects, restarts)
		}
		if s.files < n/4 {
			t.Errorf("only %d files of %d", s.files, n)
		}
	}
}

// TestForgetfulServer: a server without a journal on disk begins another stream, and says so.
func TestForgetfulServer(t *testing.T) {
	need(t)
	b := newBed(t, veth(t))
	s := newStory()
	subscribe(t, b.options(), s)
	l := startLoad(t, b.src)
	progress(t, s)
	b.server.end(unix.SIGKILL)
	b.serve()
	progress(t, s)
	n := l.finish(t)
	s.prove(t, n, protocol.GapStream)
	if s.gaps[protocol.GapStream] != 1 || len(s.gaps) != 1 {
		t.Errorf("gaps %v", s.gaps)
	}
}

// TestKillWatch: `heraldfs watch` is killed under load, and another one goes on after the last line that the
// killed one has printed whole. Both ends are killed in turn: nothing but the server's restarts is missing.
func TestKillWatch(t *testing.T) {
	need(t)
	b := newBed(t, veth(t), "--journal", t.TempDir())
	l := startLoad(t, b.src)
	s, since := newStory(), "0"
	s.next = 1
	for run := range 5 {
		w := b.net.subs.launch(t, append(append([]string{"watch", "--format=json", "--compact=never", "--since", since}, b.tlsArgs...), b.url)...)
		w.until("300 files", func(text string) bool { return strings.Count(text, `"type":"create"`) >= 300 })
		if run == 2 {
			b.server.end(unix.SIGKILL)
			b.serve()
			w.until("files after the gap", func(text string) bool {
				_, rest, ok := strings.Cut(text, `"type":"gap"`)
				return ok && strings.Count(rest, `"type":"create"`) >= 50
			})
		}
		if run == 4 {
			last := fmt.Sprintf(`"path":"`+fileName+`"`, l.finish(t))
			w.until("the last file", func(text string) bool {
				_, rest, ok := strings.Cut(text, last)
				return ok && strings.Contains(rest, "\n")
			})
		}
		w.end(unix.SIGKILL)
		since = retell(t, s, w.text())
	}
	s.prove(t, l.finish(t), protocol.GapRestart)
	if s.gaps[protocol.GapRestart] != 1 {
		t.Errorf("gaps %v", s.gaps)
	}
}

// retell adds the whole lines of what a `watch` has printed to the story, and returns the position after them.
func retell(t *testing.T, s *story, text string) string {
	t.Helper()
	lines := strings.SplitAfter(text, "\n")
	stream := ""
	for _, line := range lines[:len(lines)-1] {
		if !strings.HasPrefix(line, "{") {
			continue // of the log
		}
		var rec struct {
			Type, Path, Stream, Reason string
			Seq, First, Last           uint64
		}
		if err := json.Unmarshal([]byte(line), &rec); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		switch rec.Type {
		case "connected":
			stream = rec.Stream
			if rec.Seq+1 != s.next {
				s.fail("connected after %d, want %d", rec.Seq, s.next-1)
			}
		case "gap":
			s.rangeLocked(rec.First, rec.Last)
			s.gap = true
			reasons := map[string]protocol.Reason{"restart": protocol.GapRestart, "stream": protocol.GapStream}
			s.gaps[reasons[rec.Reason]]++
		case "disconnected", "ready":
		default:
			s.rangeLocked(rec.Seq, rec.Seq)
			if rec.Type == "create" {
				s.createLocked(rec.Path)
			}
		}
	}
	return fmt.Sprintf("%s:%d", stream, s.lastKnown)
}
