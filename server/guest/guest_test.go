package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/inotest"
	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/replay"
	"github.com/heraldfs/heraldfs/server/fusedev"
)

func TestMain(m *testing.M) { testenv.LeakMain(m) }

// patience bounds every wait for something that must happen.
const patience = 5 * time.Second

// script is a Source that emits what the test sends it.
type script struct {
	batches chan []notify.Event
	fail    chan error
	closed  chan struct{}
	once    sync.Once
}

func newScript() *script {
	return &script{batches: make(chan []notify.Event), fail: make(chan error, 1), closed: make(chan struct{})}
}

func (s *script) Run(ctx context.Context, emit func([]notify.Event)) error {
	for {
		select {
		case b := <-s.batches:
			emit(b)
		case err := <-s.fail:
			return err
		case <-s.closed:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *script) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// running is a Guest with its Run under way.
type running struct {
	*Guest
	t         *testing.T
	host, mnt string
	cancel    context.CancelFunc
	ended     chan error
}

// start mounts a fresh directory and waits until it is ready.
func start(t *testing.T, events notify.Source) *running {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.FUSE)
	r := &running{t: t, host: t.TempDir(), mnt: t.TempDir(), ended: make(chan error, 1)}
	if err := os.WriteFile(filepath.Join(r.host, "f"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	var err error
	r.Guest, err = Mount(Options{Source: r.host, Mountpoint: r.mnt, Events: events, Logger: slog.New(slog.DiscardHandler),
		Device: fusedev.Options{AllowOther: true, DefaultPermissions: true}})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.Ready():
		t.Error("ready before anybody serves")
	default:
	}
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	t.Cleanup(r.cancel)
	go func() { r.ended <- r.Run(ctx) }()
	select {
	case <-r.Ready():
	case err := <-r.ended:
		t.Fatalf("ended before it was ready: %v", err)
	case <-time.After(patience):
		t.Fatal("not ready")
	}
	return r
}

// wait waits for the end of Run, after which nothing may be mounted.
func (r *running) wait() error {
	r.t.Helper()
	select {
	case err := <-r.ended:
		info, rerr := os.ReadFile("/proc/self/mountinfo")
		if rerr != nil {
			r.t.Fatal(rerr)
		}
		if strings.Contains(string(info), r.mnt) {
			r.t.Error("the mount is left behind")
		}
		return err
	case <-time.After(patience):
		r.t.Fatal("Run does not end")
		return nil
	}
}

func TestContextEnds(t *testing.T) {
	for name, events := range map[string]notify.Source{"with events": newScript(), "plain": nil} {
		t.Run(name, func(t *testing.T) {
			r := start(t, events)
			got, err := os.ReadFile(filepath.Join(r.mnt, "f"))
			if err != nil || string(got) != "old" {
				t.Errorf("read %q, %v", got, err)
			}
			r.cancel()
			if err := r.wait(); err != nil {
				t.Errorf("Run: %v", err)
			}
			select {
			case <-r.Ready():
			default:
				t.Error("Ready is open again")
			}
		})
	}
}

// TestBusyMountEnds ends a mount in which somebody has a file open.
func TestBusyMountEnds(t *testing.T) {
	r := start(t, newScript())
	f, err := os.Open(filepath.Join(r.mnt, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.cancel()
	if err := r.wait(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestUnmountedByOthers(t *testing.T) {
	for name, events := range map[string]notify.Source{"with events": newScript(), "plain": nil} {
		t.Run(name, func(t *testing.T) {
			r := start(t, events)
			if err := unix.Unmount(r.mnt, 0); err != nil {
				t.Fatal(err)
			}
			if err := r.wait(); err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
}

// TestUnmountedEarly unmounts before Run has begun to serve.
func TestUnmountedEarly(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	for name, events := range map[string]notify.Source{"with events": newScript(), "plain": nil} {
		t.Run(name, func(t *testing.T) {
			r := &running{t: t, mnt: t.TempDir(), ended: make(chan error, 1)}
			var err error
			r.Guest, err = Mount(Options{Source: t.TempDir(), Mountpoint: r.mnt, Events: events})
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Unmount(r.mnt, 0); err != nil {
				t.Fatal(err)
			}
			go func() { r.ended <- r.Run(context.Background()) }()
			if err := r.wait(); err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
}

func TestSourceFails(t *testing.T) {
	src := newScript()
	r := start(t, src)
	broken := errors.New("broken")
	src.fail <- broken
	if err := r.wait(); !errors.Is(err, broken) {
		t.Errorf("Run: %v, must be %v", err, broken)
	}
	select {
	case <-src.closed:
	default:
		t.Error("the source was not closed")
	}
}

// TestSourceEnds has a source that ends without an error: without events the caches would
// be wrong, so the mount must not go on.
func TestSourceEnds(t *testing.T) {
	src := newScript()
	r := start(t, src)
	src.Close()
	if err := r.wait(); err == nil {
		t.Error("Run returned nil though the events ended")
	}
}

// TestCloseWithoutRun gives up a mount that nobody served.
func TestCloseWithoutRun(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	mnt := t.TempDir()
	g, err := Mount(Options{Source: t.TempDir(), Mountpoint: mnt, Events: newScript()})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(mnt); err != nil || len(entries) != 0 {
		t.Errorf("the mount point: %v, %v", entries, err)
	}
}

func TestMountFails(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	dir := t.TempDir()
	if _, err := Mount(Options{Source: filepath.Join(dir, "nothing"), Mountpoint: dir}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a source that does not exist: %v", err)
	}
	if _, err := Mount(Options{Source: dir, Mountpoint: filepath.Join(dir, "nothing")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a mount point that does not exist: %v", err)
	}
}

// TestEventArrives is one event from the source to a watcher, and the new content with it.
func TestEventArrives(t *testing.T) {
	src := newScript()
	r := start(t, src)
	path, hostPath := filepath.Join(r.mnt, "f"), filepath.Join(r.host, "f")
	if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
		t.Fatalf("read %q, %v", got, err)
	}
	rec := inotest.New(t, inotest.Options{Timeout: patience})
	fence := t.TempDir()
	rec.Watch(r.mnt, "guest", 0)
	rec.Watch(fence, "fence", 0)
	if err := os.WriteFile(hostPath, []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	src.batches <- []notify.Event{{Op: notify.OpModify, Dir: object(t, r.host), Name: "f", Object: object(t, hostPath), Time: time.Now()}}
	// The first batch has been emitted when the source takes the second.
	src.batches <- nil
	var buf [8]byte
	if _, err := unix.Getxattr(r.mnt, replay.SyncAttr, buf[:]); err != nil {
		t.Fatalf("sync: %v", err)
	}
	if err := os.Mkdir(filepath.Join(fence, "end"), 0o755); err != nil {
		t.Fatal(err)
	}
	heard := rec.WaitFor("end")
	if len(heard) != 1 || heard[0].String() != `guest MODIFY "f"` {
		t.Errorf("heard:\n%s", inotest.Format(heard))
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "new" {
		t.Errorf("read %q, %v", got, err)
	}
	if n := r.Stats().Replayed.Load(); n != 1 {
		t.Errorf("%d events replayed", n)
	}
	rec.Close()
	r.cancel()
	if err := r.wait(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func object(t *testing.T, path string) notify.Object {
	t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	obj, _, err := sys.ObjectOf(fd)
	if err != nil {
		t.Fatal(err)
	}
	return obj
}

// TestReadsAhead looks up how much the kernel reads at once.
func TestReadsAhead(t *testing.T) {
	r := start(t, nil)
	kb, err := os.ReadFile(fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", r.conn.Device()))
	if err != nil || strings.TrimSpace(string(kb)) != strconv.Itoa(readAheadKB) {
		t.Errorf("%q kB, %v", kb, err)
	}
	r.cancel()
	if err := r.wait(); err != nil {
		t.Error(err)
	}
}
