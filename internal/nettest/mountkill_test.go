package nettest

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// TestKillMount: a mount is killed under load and mounted again, over a link that delays, loses and doubles packets; once
// the server is killed between. Whoever watches in a mount and then lists it misses no file: the first one that it hears
// of and all behind it come once and in turn, and all before are in the list. Nothing is lost between two mounts without
// being seen, and nothing is told twice.
func TestKillMount(t *testing.T) {
	need(t)
	testenv.Need(t, testenv.FUSE)
	b := newBed(t, bad(t, &badLink{jitter: 4 * time.Millisecond, loss: 2, twice: 5}), "--journal", t.TempDir())
	share, mnt := t.TempDir(), t.TempDir()
	check(t, unix.Mount(b.src, share, "", unix.MS_BIND, ""))
	t.Cleanup(func() { check(t, unix.Unmount(share, unix.MNT_DETACH)) })
	l := startLoad(t, b.src)
	const lives = 4
	for life := range lives {
		m := b.net.subs.launch(t, append(append([]string{"mount", "--events", b.url}, b.tlsArgs...), share, mnt)...)
		t.Cleanup(func() { m.end(unix.SIGTERM) })
		m.says("caught up")
		heard := listen(t, mnt)
		listed, err := os.ReadDir(mnt)
		check(t, err)
		heard.more(t, 300)
		if life == 1 {
			b.server.end(unix.SIGKILL)
			b.serve()
			// What happened meanwhile is found by comparing, and told in no order: let that be over.
			heard.more(t, 300)
			synced(t, mnt)
			heard.more(t, 300)
		}
		if life < lives-1 {
			m.end(unix.SIGKILL)
			// The dead mount is ours to take away, and its watches with it.
			check(t, unix.Unmount(mnt, unix.MNT_DETACH))
			heard.inTurn(t, len(listed), life == 1, fmt.Sprintf("life %d", life))
			continue
		}
		n := l.finish(t)
		heard.reach(t, n)
		synced(t, mnt)
		heard.inTurn(t, len(listed), false, "the last life")
		if entries, err := os.ReadDir(mnt); err != nil || len(entries) != n {
			t.Errorf("%d files in the mount, want %d (%v)", len(entries), n, err)
		}
	}
}

// synced waits until everything is told.
func synced(t testing.TB, mnt string) {
	t.Helper()
	if out, err := exec.Command(bin, "sync", mnt).CombinedOutput(); err != nil {
		t.Errorf("sync: %v: %s", err, out)
	}
}

// more waits for n files more than were heard of.
func (l *listener) more(t testing.TB, n int) {
	t.Helper()
	l.mu.Lock()
	top := l.top
	l.mu.Unlock()
	l.reach(t, top+n)
}

// inTurn checks that each file behind the first listed ones was heard of, each once at most, up to the last one. What was
// listed is not told after a loss: the comparison finds that it is known.
func (l *listener) inTurn(t testing.TB, listed int, loss bool, when string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost {
		t.Errorf("%s: the watcher's own queue was full", when)
	}
	first := l.top
	for n, times := range l.creates {
		first = min(first, n)
		if times != 1 {
			t.Errorf("%s: file %d was heard of %d times", when, n, times)
		}
	}
	if first > listed+1 {
		t.Errorf("%s: %d files were listed, and the first that was heard of is %d", when, listed, first)
	}
	from := first
	if loss {
		from = max(first, listed+1)
	}
	var missed []int
	for n := from; n < l.top; n++ {
		if l.creates[n] == 0 {
			missed = append(missed, n)
		}
	}
	if len(missed) > 0 {
		t.Errorf("%s: %d files were listed; of files %d to %d these were not heard of: %v", when, listed, first, l.top, missed)
	}
}
