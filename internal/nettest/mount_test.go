package nettest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// listener counts what a native inotify watcher of one directory hears of the load.
type listener struct {
	file *os.File
	done sync.WaitGroup

	mu      sync.Mutex
	creates map[int]int
	top     int
	lost    bool // its own queue was full
}

func listen(t testing.TB, dir string) *listener {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	check(t, err)
	l := &listener{file: os.NewFile(uintptr(fd), "inotify"), creates: make(map[int]int)}
	_, err = unix.InotifyAddWatch(fd, dir, unix.IN_CREATE)
	check(t, err)
	l.done.Go(l.read)
	t.Cleanup(func() { l.file.Close(); l.done.Wait() })
	return l
}

func (l *listener) read() {
	buf := make([]byte, 64<<10)
	for {
		n, err := l.file.Read(buf)
		if err != nil {
			return
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			size := int(binary.NativeEndian.Uint32(b[12:]))
			name := string(bytes.TrimRight(b[unix.SizeofInotifyEvent:][:size], "\x00"))
			l.heard(binary.NativeEndian.Uint32(b[4:]), name)
			b = b[unix.SizeofInotifyEvent+size:]
		}
	}
}

func (l *listener) heard(mask uint32, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if mask&unix.IN_Q_OVERFLOW != 0 {
		l.lost = true
	}
	var n int
	if _, err := fmt.Sscanf(name, fileName, &n); err == nil && mask&unix.IN_CREATE != 0 {
		l.creates[n]++
		l.top = max(l.top, n)
	}
}

// reach waits until a file with that number, or a later one, was heard of.
func (l *listener) reach(t testing.TB, n int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		l.mu.Lock()
		top, heard := l.top, len(l.creates)
		l.mu.Unlock()
		if top >= n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for file %d: %d were heard of, the last is %d", n, heard, top)
		}
		time.Sleep(time.Millisecond) // inotify tells nobody but its reader
	}
}

// TestMountFed: a mount in the subscribers' namespace, fed from the server's. The link is cut and the server killed
// under load; in the mount every file is there in the end, and a native watcher has heard of each exactly once.
func TestMountFed(t *testing.T) {
	need(t)
	testenv.Need(t, testenv.FUSE)
	b := newBed(t, veth(t), "--journal", t.TempDir())
	share, mnt := t.TempDir(), t.TempDir()
	check(t, unix.Mount(b.src, share, "", unix.MS_BIND, ""))
	t.Cleanup(func() { check(t, unix.Unmount(share, unix.MNT_DETACH)) })
	m := b.net.subs.launch(t, append(append([]string{"mount", "--events", b.url}, b.tlsArgs...), share, mnt)...)
	t.Cleanup(func() { m.end(unix.SIGTERM) })
	m.says("caught up")
	heard := listen(t, mnt)

	l := startLoad(t, b.src)
	heard.reach(t, 200)
	b.net.cut(t)
	b.net.mend(t)
	heard.reach(t, 600)
	b.server.end(unix.SIGKILL)
	b.serve()
	heard.reach(t, 1200)
	n := l.finish(t)
	heard.reach(t, n)
	synced(t, mnt)
	entries, err := os.ReadDir(mnt)
	check(t, err)
	if len(entries) != n {
		t.Errorf("%d files in the mount, want %d", len(entries), n)
	}
	heard.mu.Lock()
	defer heard.mu.Unlock()
	if heard.lost {
		t.Error("the watcher's own queue was full")
	}
	wrong := 0
	for i := 1; i <= n; i++ {
		if heard.creates[i] != 1 {
			if wrong++; wrong < 10 {
				t.Errorf("%s was heard of %d times", filepath.Join(mnt, fmt.Sprintf(fileName, i)), heard.creates[i])
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d files\n%s", wrong, n, m.text())
	}
}
