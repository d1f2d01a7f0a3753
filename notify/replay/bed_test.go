package replay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/inotest"
	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/server/fusedev"
	"github.com/heraldfs/heraldfs/server/passthrough"
)

// script is a Source that emits what the test pushes.
type script struct {
	batches chan []notify.Event
	emitted chan struct{}
	closed  chan struct{}
	once    sync.Once
	err     error // what Run ends with when closed; set before
	// behind, if set, is what the source finds in its queue when it is asked to read to the end.
	behind atomic.Pointer[[]notify.Event]
}

// Barrier implements notify.Barrier.
func (s *script) Barrier(context.Context) error {
	if events := s.behind.Swap(nil); events != nil {
		s.batches <- *events
		<-s.emitted
	}
	return nil
}

func newScript() *script {
	return &script{batches: make(chan []notify.Event), emitted: make(chan struct{}), closed: make(chan struct{})}
}

func (s *script) Run(ctx context.Context, emit func([]notify.Event)) error {
	for {
		select {
		case b := <-s.batches:
			emit(b)
			s.emitted <- struct{}{}
		case <-ctx.Done():
			return nil
		case <-s.closed:
			return s.err
		}
	}
}

func (s *script) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// counter counts the requests of the guest's kernel that name something.
type counter struct {
	fuse.RawFileSystem
	n, opens atomic.Int64
	// noOpen answers OPEN with ENOSYS, after which the kernel opens without asking.
	noOpen atomic.Bool
}

func (c *counter) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	c.n.Add(1)
	return c.RawFileSystem.Lookup(cancel, h, name, out)
}

func (c *counter) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	c.n.Add(1)
	return c.RawFileSystem.GetAttr(cancel, in, out)
}

func (c *counter) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	c.n.Add(1)
	return c.RawFileSystem.SetAttr(cancel, in, out)
}

func (c *counter) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	c.n.Add(1)
	return c.RawFileSystem.Mknod(cancel, in, name, out)
}

func (c *counter) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	c.n.Add(1)
	return c.RawFileSystem.Create(cancel, in, name, out)
}

func (c *counter) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	c.n.Add(1)
	return c.RawFileSystem.Mkdir(cancel, in, name, out)
}

func (c *counter) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	c.n.Add(1)
	return c.RawFileSystem.Unlink(cancel, h, name)
}

func (c *counter) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	c.n.Add(1)
	return c.RawFileSystem.Rmdir(cancel, h, name)
}

func (c *counter) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	c.n.Add(1)
	return c.RawFileSystem.Rename(cancel, in, oldName, newName)
}

func (c *counter) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	c.n.Add(1)
	c.opens.Add(1)
	if c.noOpen.Load() {
		return fuse.ENOSYS
	}
	return c.RawFileSystem.Open(cancel, in, out)
}

// bed is a mount of a host directory whose events the test tells.
type bed struct {
	t         testing.TB
	host, mnt string
	raw       *passthrough.FS
	fs        *FS
	requests  counter
	src       *script
	r         *Replayer
	guest     *inotest.Recorder
	fenceDir  string
	fences    int
	// unexpected is how many unexpected requests the test has caused.
	unexpected uint64
	close      func()
	runErr     error // valid after close
}

// newBed mounts an empty host directory, after prepare has filled it.
func newBed(t testing.TB, prepare func(host string)) *bed {
	t.Helper()
	return mountBed(t, prepare, false)
}

// mountBed is newBed; visible has the replayer work on the visible mount.
func mountBed(t testing.TB, prepare func(host string), visible bool) *bed {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.FUSE)
	b := &bed{t: t, host: t.TempDir(), mnt: t.TempDir(), fenceDir: t.TempDir(), src: newScript()}
	if prepare != nil {
		prepare(b.host)
	}
	log := slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	late := &lateObserver{}
	var err error
	b.raw, err = passthrough.New(b.host, passthrough.Options{EntryTimeout: time.Hour, AttrTimeout: time.Hour,
		NegativeTimeout: time.Hour, NoOpendir: true, KeepCache: true, Observer: late, Logger: log})
	b.must(err)
	b.fs = NewFS(b.raw)
	late.Observer = b.fs
	b.requests.RawFileSystem = b.fs
	conn, err := fusedev.Mount(b.mnt, &b.requests, fusedev.Options{Fuse: b.raw.MountOptions(), AllowOther: true, DefaultPermissions: true, Logger: log})
	b.must(err)
	served := make(chan error, 1)
	go func() { served <- conn.Serve(context.Background()) }()
	b.must(conn.WaitReady(context.Background()))
	cfg := Config{FS: b.fs, Tree: b.raw, Notify: conn.Notify(), Source: b.src, Mask: notify.AllMask, Logger: log}
	if visible {
		cfg.OpenRoot = func() (int, error) {
			return unix.Open(b.mnt, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		}
	} else {
		cfg.Root, err = conn.PrivateRoot()
		b.must(err)
	}
	b.r, err = New(cfg)
	b.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- b.r.Run(ctx) }()
	<-b.r.Started()
	if b.fs.tid.Load() == uint32(os.Getpid()) {
		t.Error("the replayer took the process's first thread, whose descriptors are those of /proc/self/fd")
	}
	b.close = sync.OnceFunc(func() {
		cancel()
		b.runErr = <-ran
		if !visible {
			unix.Close(cfg.Root)
		}
		if err := errors.Join(conn.Close(), <-served, b.raw.Close()); err != nil {
			t.Errorf("end of the mount: %v", err)
		}
	})
	t.Cleanup(func() {
		if b.guest != nil {
			b.guest.Close()
		}
		b.close()
		if b.runErr != nil {
			t.Errorf("replayer: %v", b.runErr)
		}
		st := b.fs.Stats()
		if n := st.Unexpected.Load(); n != b.unexpected {
			t.Errorf("%d unexpected requests, must be %d: %s", n, b.unexpected, st.LastProblem())
		}
	})
	b.guest = inotest.New(t, inotest.Options{Timeout: 5 * time.Second})
	b.guest.Watch(b.fenceDir, "fence", notify.Create)
	return b
}

type lateObserver struct{ passthrough.Observer }

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", p)
	return len(p), nil
}

func (b *bed) must(errs ...error) {
	b.t.Helper()
	if err := errors.Join(errs...); err != nil {
		b.t.Fatal(err)
	}
}

// watch has a guest's watcher hear of paths below the mount; "." is the root.
func (b *bed) watch(rels ...string) {
	b.t.Helper()
	for _, rel := range rels {
		b.guest.Watch(filepath.Join(b.mnt, rel), rel, notify.AllMask)
	}
}

func (b *bed) path(rel string) string { return filepath.Join(b.host, rel) }

// obj names what is on the host now.
func (b *bed) obj(rel string) notify.Object {
	b.t.Helper()
	fd, err := unix.Open(b.path(rel), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		b.t.Fatalf("open %s: %v", rel, err)
	}
	defer unix.Close(fd)
	obj, _, err := sys.ObjectOf(fd)
	b.must(err)
	return obj
}

// ev is an event about dir/name and obj.
func (b *bed) ev(op notify.Op, dir, name string, obj notify.Object) notify.Event {
	b.t.Helper()
	return notify.Event{Op: op, Dir: b.obj(dir), Name: name, Object: obj}
}

// move is the rename of obj.
func (b *bed) move(dir, name, newDir, newName string, obj notify.Object) notify.Event {
	b.t.Helper()
	return notify.Event{Op: notify.OpRename, Dir: b.obj(dir), Name: name, NewDir: b.obj(newDir), NewName: newName, Object: obj}
}

func isDir(ev notify.Event) notify.Event {
	ev.IsDir = true
	return ev
}

// push tells events and returns when they have been replayed.
func (b *bed) push(events ...notify.Event) {
	b.t.Helper()
	for i := range events {
		events[i].Time = time.Now()
	}
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
	defer stop()
	b.src.batches <- events
	<-b.src.emitted
	b.must(b.r.Sync(ctx))
}

// heard returns what the guest's watchers heard since the last call and nothing later, repetitions folded.
func (b *bed) heard() []string {
	b.t.Helper()
	b.fences++
	name := fmt.Sprint("fence-", b.fences)
	b.must(os.WriteFile(filepath.Join(b.fenceDir, name), nil, 0o600))
	var out []string
	for _, rec := range inotest.Fold(b.guest.WaitFor(name)) {
		out = append(out, rec.String())
	}
	return out
}

// expect compares what was heard.
func (b *bed) expect(want ...string) {
	b.t.Helper()
	if d := cmp.Diff(want, b.heard()); d != "" {
		b.t.Errorf("guest's watchers heard (-want +got):\n%s", d)
	}
}

// expectHost compares the host's directory with what a name has in it.
func (b *bed) expectHost(before map[string]string) {
	b.t.Helper()
	if d := cmp.Diff(before, b.snapshot()); d != "" {
		b.t.Errorf("the replay touched the host (-before +after):\n%s", d)
	}
}

// snapshot describes all that is on the host but access times.
func (b *bed) snapshot() map[string]string {
	b.t.Helper()
	out := map[string]string{}
	b.must(filepath.WalkDir(b.host, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		var content []byte
		if e.Type().IsRegular() {
			if content, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		out[path] = fmt.Sprintf("ino %d mode %o nlink %d mtime %v ctime %v %q", st.Ino, st.Mode, st.Nlink, st.Mtim, st.Ctim, content)
		return nil
	}))
	return out
}

// write makes a file on the host.
func (b *bed) write(rel, content string) {
	b.t.Helper()
	b.must(os.WriteFile(b.path(rel), []byte(content), 0o644))
}

// look has a guest process look a name up, and reports whether it is there.
func (b *bed) look(rel string) bool {
	b.t.Helper()
	_, err := os.Lstat(filepath.Join(b.mnt, rel))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.t.Fatal(err)
	}
	return err == nil
}
