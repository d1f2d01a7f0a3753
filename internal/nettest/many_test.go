package nettest

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/protocol"
)

// TestMany: 500 subscribers over TLS, one that takes its time and one that never reads. The 500 get
// everything while the other two read nothing; the slow one is told of a gap then, and goes on.
func TestMany(t *testing.T) {
	need(t)
	const many, rounds, batch = 500, 10, 50
	sock := filepath.Join(t.TempDir(), "s")
	b := newBed(t, veth(t), "--journal-events", "200", "--listen", "unix://"+sock)
	o := b.options()
	o.Conn.IdleTimeout, o.Conn.HandshakeTimeout = time.Minute, patience
	o.MaxBackoff = time.Second

	slow, stuck := newStory(), newStory()
	slow.hold, stuck.hold = make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(slow.hold) })
	behind := o
	behind.Subscribe = protocol.Subscribe{Compact: protocol.CompactBehind, Window: 1}
	subscribe(t, behind, slow)
	subscribe(t, behind, stuck)
	t.Cleanup(release) // before their ends, which wait for the handlers
	t.Cleanup(func() { close(stuck.hold) })
	all := make([]*story, many)
	for i := range all {
		all[i] = newStory()
		subscribe(t, o, all[i])
	}
	for _, s := range append([]*story{slow, stuck}, all...) {
		s.wait(t, "a connection", func() bool { return s.connects > 0 })
	}
	n := 0
	for range rounds {
		for range batch {
			n++
			check(t, unix.Mknod(filepath.Join(b.src, fmt.Sprintf(fileName, n)), unix.S_IFREG|0o600, 0))
		}
		// Nobody is pushed off the small journal by the test itself.
		for _, s := range all {
			s.wait(t, "a round", func() bool { return s.file >= n })
		}
	}
	text, err := exec.Command(bin, "status", sock).CombinedOutput()
	if err != nil || !strings.Contains(string(text), fmt.Sprintf("%d connected", many+2)) {
		t.Errorf("status: %v\n%s", err, text)
	}
	for _, s := range all {
		s.proveQuietly(t, n)
	}
	release()
	slow.prove(t, n, protocol.GapBacklog, protocol.GapJournal)
	if len(slow.gaps) == 0 || slow.files == n {
		t.Errorf("the slow one was not behind")
	}
	if got := stuck.soFar(); got != 0 {
		t.Errorf("the stuck one has read %d", got)
	}
}
