//go:build linux

package watcher_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/echo"
	"github.com/heraldfs/heraldfs/watcher"
	"github.com/heraldfs/heraldfs/watcher/inotify"
)

var _ inotify.Positioned = (*echo.Ledger)(nil)

// probeRootEnv makes the test binary a process that only probes.
const probeRootEnv = "HERALDFS_TEST_PROBE_ROOT"

// TestMain also fails if the tests leave a descriptor behind.
func TestMain(m *testing.M) {
	if root := os.Getenv(probeRootEnv); root != "" {
		os.Exit(probeProcess(root))
	}
	before := descriptors()
	code := m.Run()
	if after := descriptors(); code == 0 && len(after) > len(before) {
		fmt.Fprintf(os.Stderr, "descriptors left open: %v, at first %v\n", after, before)
		code = 1
	}
	os.Exit(code)
}

// descriptors lists the kinds that a watcher makes.
func descriptors() []string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		// Go's network poller has an eventpoll and an eventfd of its own from its first use.
		if err == nil && (strings.Contains(to, "notify") || strings.Contains(to, "mountinfo") || strings.HasPrefix(to, "/tmp")) {
			out = append(out, e.Name()+"="+to)
		}
	}
	return out
}

func TestCloseAndCancel(t *testing.T) {
	needRoot(t)
	for _, be := range backends {
		t.Run(be.name, func(t *testing.T) {
			before := descriptors()
			o := be.opts
			o.Root = t.TempDir()
			for range 20 {
				w, err := watcher.Open(o)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(context.Background())
				ended := make(chan error, 1)
				go func() { ended <- w.Run(ctx, func([]notify.Event) {}) }()
				cancel()
				if err := <-ended; err != nil {
					t.Fatalf("Run after cancel: %v", err)
				}
				go func() { ended <- w.Run(context.Background(), func([]notify.Event) {}) }()
				var wg sync.WaitGroup
				for range 2 {
					wg.Go(func() {
						if err := w.Close(); err != nil {
							t.Errorf("close: %v", err)
						}
					})
				}
				wg.Wait()
				if err := <-ended; err != nil {
					t.Fatalf("Run after close: %v", err)
				}
				if w.Marker != nil {
					if err := w.Marker.Mark(notify.Object{FS: 1}, 0); !errors.Is(err, notify.ErrClosed) {
						t.Errorf("Mark after close: %v", err)
					}
					w.Marker.Unmark(notify.Object{FS: 1})
				}
			}
			if after := descriptors(); len(after) > len(before) {
				t.Errorf("descriptors: %v, before %v", after, before)
			}
		})
	}
}

func TestDropPid(t *testing.T) {
	needRoot(t)
	for _, be := range backends[:2] {
		t.Run(be.name, func(t *testing.T) {
			o := be.opts
			o.DropPid = os.Getpid()
			b := newBed(t, t.TempDir(), o)
			if !b.w.HasPid {
				t.Error("HasPid is false")
			}
			b.do("create mine")
			run(t, "touch", b.path("theirs"))
			want := []string{"create theirs", "attrib theirs", "close_write theirs"}
			var got []string
			for len(got) < len(want) {
				select {
				case evs := <-b.events:
					got = append(got, b.tell(evs)...)
				case <-time.After(patience):
					t.Fatalf("got %q, want %q", got, want)
				}
			}
			if strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// TestEchoWakesNobody: our own changes are read and passed over, and emit is not called for them.
func TestEchoWakesNobody(t *testing.T) {
	needRoot(t)
	base := mountAt(t, "heraldfs-test", "tmpfs", "")
	b := newBed(t, base, watcher.Options{Backend: watcher.Fanotify, DropPid: os.Getpid()})
	for range 3 {
		b.do("create mine")
		b.do("unlink mine")
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		err := b.w.Barrier(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
	run(t, "touch", b.path("theirs"))
	select {
	case evs := <-b.events:
		if got := b.tell(evs); len(got) == 0 || got[0] != "create theirs" {
			t.Errorf("emitted %q first", got)
		}
	case <-time.After(patience):
		t.Fatal("nothing came of others")
	}
}

// TestLedger lets a ledger take our own changes out of inotify's stream while the host
// makes equal ones before and after.
func TestLedger(t *testing.T) {
	ledger := echo.New(echo.Options{})
	b := newBed(t, t.TempDir(), watcher.Options{Backend: watcher.Inotify, Ledger: ledger})
	root := b.mark(".")
	b.do("create f")
	b.fence()
	const rounds = 200
	// The neighbours differ, so that the kernel cannot merge across the border.
	for range rounds {
		b.do("append f host")
		done := ledger.Expect(root, "f", notify.Modify, notify.Modify, notify.Modify, notify.CloseWrite)
		fd, err := unix.Open(b.path("f"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := unix.Write(fd, []byte("ours")); err != nil {
				t.Fatal(err)
			}
		}
		unix.Close(fd)
		done()
	}
	got := b.tell(b.fence())
	if len(got) != 2*rounds {
		t.Fatalf("%d events of the host's %d", len(got), 2*rounds)
	}
	for i, ev := range got {
		if want := []string{"modify f", "close_write f"}[i%2]; ev != want {
			t.Fatalf("event %d is %q, want %q", i, ev, want)
		}
	}
}

// TestInterleavedRenames has threads rename in their own directories, so that the halves of different
// renames stand between each other.
func TestInterleavedRenames(t *testing.T) {
	needRoot(t)
	const threads, rounds = 4, 2000
	for _, be := range backends {
		t.Run(be.name, func(t *testing.T) {
			b := newBed(t, t.TempDir(), be.opts)
			for i := range threads {
				b.do(fmt.Sprintf("mkdir s%d", i))
				b.do(fmt.Sprintf("mkdir t%d", i))
				b.do(fmt.Sprintf("create s%d/0", i))
			}
			b.fence()
			split := splitHalves(t, b, threads)
			var wg sync.WaitGroup
			for i := range threads {
				wg.Go(func() {
					for n := range rounds {
						from := b.path(fmt.Sprintf("%c%d/%d", "st"[n%2], i, n))
						to := b.path(fmt.Sprintf("%c%d/%d", "ts"[n%2], i, n+1))
						if i > 0 {
							// Renames between directories take turns; only those within one run at once.
							from, to = b.path(fmt.Sprintf("s%d/%d", i, n)), b.path(fmt.Sprintf("s%d/%d", i, n+1))
						}
						if err := unix.Rename(from, to); err != nil {
							t.Errorf("rename: %v", err)
						}
					}
				})
			}
			wg.Wait()
			if n := split(); n == 0 {
				t.Log("all halves were neighbours this time")
			}
			next := make([]int, threads)
			for _, line := range b.tell(b.fence()) {
				var a, c string
				var i, j, n, m int
				if _, err := fmt.Sscanf(line, "rename %1s%d/%d -> %1s%d/%d", &a, &i, &n, &c, &j, &m); err != nil {
					t.Fatalf("%q: %v", line, err)
				}
				if i != j || (i == 0) != (a != c) || n != next[i] || m != n+1 {
					t.Fatalf("%q: thread %d was at %d", line, i, next[i])
				}
				next[i]++
			}
			for i, n := range next {
				if n != rounds {
					t.Errorf("thread %d: %d renames of %d", i, n, rounds)
				}
			}
		})
	}
}

// splitHalves watches the same directories with an inotify instance of its own; what it returns counts the
// renames whose second half did not follow the first at once.
func splitHalves(t *testing.T, b *bed, threads int) func() int {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	for i := range threads {
		for _, side := range "st" {
			if _, err := unix.InotifyAddWatch(fd, b.path(fmt.Sprintf("%c%d", side, i)), unix.IN_MOVE); err != nil {
				t.Fatal(err)
			}
		}
	}
	return func() int {
		defer unix.Close(fd)
		split := 0
		var last uint32
		buf := make([]byte, 1<<20)
		for {
			n, err := unix.Read(fd, buf)
			if err != nil {
				return split
			}
			for rec := buf[:n]; len(rec) > 0; {
				mask, cookie := binary.NativeEndian.Uint32(rec[4:]), binary.NativeEndian.Uint32(rec[8:])
				if mask&unix.IN_MOVED_TO != 0 && cookie != last {
					split++
				}
				last = cookie
				rec = rec[unix.SizeofInotifyEvent+binary.NativeEndian.Uint32(rec[12:]):]
			}
		}
	}
}

// TestOverflow fills a short queue before anybody reads.
func TestOverflow(t *testing.T) {
	needRoot(t)
	for _, tc := range []struct {
		sysctl string
		opts   watcher.Options
	}{
		{"/proc/sys/fs/fanotify/max_queued_events", watcher.Options{Backend: watcher.Fanotify, LimitedQueue: true, ForceInodeMarks: true}},
		{"/proc/sys/fs/fanotify/max_queued_events", watcher.Options{Backend: watcher.Fanotify, LimitedQueue: true}},
		{"/proc/sys/fs/inotify/max_queued_events", watcher.Options{Backend: watcher.Inotify}},
	} {
		t.Run(fmt.Sprintf("%s-%v", tc.opts.Backend, tc.opts.ForceInodeMarks), func(t *testing.T) {
			// A file system of our own, so that nobody else fills the queue.
			o := tc.opts
			o.Root = mountAt(t, "heraldfs-test", "tmpfs", "")
			old, err := os.ReadFile(tc.sysctl)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(tc.sysctl, []byte("32"), 0o644); err != nil {
				t.Fatal(err)
			}
			w, err := watcher.Open(o)
			if err2 := os.WriteFile(tc.sysctl, old, 0o644); err2 != nil {
				t.Fatal(err2)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			if w.Marker != nil {
				markPath(t, w.Marker, o.Root)
			}
			for i := range 200 {
				if err := unix.Mknod(fmt.Sprintf("%s/f%d", o.Root, i), unix.S_IFREG, 0); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			var got []notify.Event
			if err := w.Run(ctx, func(evs []notify.Event) {
				got = append(got, evs...)
				cancel()
			}); err != nil {
				t.Fatal(err)
			}
			if len(got) != 33 {
				t.Fatalf("%d events, want 32 and an overflow", len(got))
			}
			for i, ev := range got {
				want := notify.Event{Op: notify.OpCreate, Name: fmt.Sprintf("f%d", i)}
				if i == 32 {
					want = notify.Event{Op: notify.OpOverflow}
				}
				if ev.Op != want.Op || ev.Name != want.Name || ev.Seq != uint64(i+1) || ev.Time.IsZero() {
					t.Errorf("event %d: %v, seq %d, want %v", i, ev, ev.Seq, want)
				}
			}
		})
	}
}

func markPath(t *testing.T, m notify.Marker, path string) notify.Object {
	t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	o, _, err := sys.ObjectOf(fd)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Mark(o, fd); err != nil {
		t.Fatalf("mark %s: %v", path, err)
	}
	return o
}

// TestUnmark asks that nothing is heard afterwards, and that marking again works.
func TestUnmark(t *testing.T) {
	needRoot(t)
	for _, kind := range []struct {
		name string
		make func(*testing.T) string
	}{{"tmpfs", func(t *testing.T) string { return mountAt(t, "heraldfs-test", "tmpfs", "") }}, {"overlay", overlay}} {
		for _, be := range backends[1:] {
			t.Run(kind.name+"-"+be.name, func(t *testing.T) {
				b := newBed(t, kind.make(t), be.opts)
				b.do("mkdir d")
				b.fence()
				o := b.mark("d") // twice is not an error
				b.w.Marker.Unmark(o)
				b.w.Marker.Unmark(o)
				path := b.path("d")
				if err := unix.Mknod(path+"/unheard", unix.S_IFREG, 0); err != nil {
					t.Fatal(err)
				}
				delete(b.dirs, o)
				for _, ev := range b.fence() {
					if ev.Name == "unheard" {
						t.Errorf("heard of %v", ev)
					}
				}
				b.mark("d")
				if err := unix.Mknod(path+"/heard", unix.S_IFREG, 0); err != nil {
					t.Fatal(err)
				}
				if got := b.tell(b.fence()); len(got) != 1 || got[0] != "create d/heard" {
					t.Errorf("after marking again: %q", got)
				}
			})
		}
	}
}

// TestUnprivileged is run by nobody in a process of its own.
func TestUnprivileged(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	// The parents that t.TempDir made are root's alone.
	for dir := root; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	exe := filepath.Join(root, "probe")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), probeRootEnv+"="+root)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"backend=inotify", "heard of create", "fanotify: false", "inotify: true", "grant CAP_SYS_ADMIN"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
}

// probeProcess is what TestUnprivileged starts.
func probeProcess(root string) int {
	fail := func(err error) int {
		fmt.Println(err)
		return 1
	}
	var log bytes.Buffer
	w, err := watcher.Open(watcher.Options{Root: root, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		return fail(err)
	}
	fmt.Print(log.String())
	fd, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	if err := w.Marker.Mark(notify.Object{FS: 1, Handle: "root"}, fd); err != nil {
		return fail(err)
	}
	if err := os.WriteFile(root+"/new", nil, 0o600); err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err = w.Run(ctx, func(evs []notify.Event) {
		fmt.Println("heard of", evs[0].Op, evs[0].Name)
		cancel()
	})
	if err != nil {
		return fail(err)
	}
	if err := w.Close(); err != nil {
		return fail(err)
	}
	r := watcher.Probe(root)
	if r.Err != nil {
		return fail(r.Err)
	}
	for _, v := range r.Verdicts {
		fmt.Printf("%s: %v %s\n", v.Backend, v.Works, v.Advice)
	}
	return 0
}

func TestProbe(t *testing.T) {
	needRoot(t)
	r := watcher.Probe(t.TempDir())
	if r.Err != nil || !r.SysAdmin || !r.DacReadSearch || r.Handles != sys.HandleOpenable || r.FSType == "" {
		t.Errorf("on the temporary directory: %+v", r)
	}
	for _, v := range r.Verdicts {
		if !v.Works {
			t.Errorf("%s: %v", v.Backend, v.Err)
		}
	}
	r = watcher.Probe(overlay(t))
	if r.FSType != "overlay" || r.Chosen != watcher.FanotifyInode || r.Handles != sys.HandleFID {
		t.Errorf("on overlayfs: %+v", r)
	}
	if v := r.Verdicts[0]; v.Works || !errors.Is(v.Err, unix.EOPNOTSUPP) || v.Advice == "" {
		t.Errorf("filesystem mark on overlayfs: %+v", v)
	}
	if r = watcher.Probe("/nonexistent"); r.Err == nil {
		t.Error("no error for what does not exist")
	}
}
