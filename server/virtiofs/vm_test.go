package virtiofs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/internal/vmtest"
	"github.com/heraldfs/heraldfs/server/passthrough"
	"github.com/heraldfs/heraldfs/server/virtiofs"
)

func TestMain(m *testing.M) { testenv.LeakMain(m) }

const limit = 30 * time.Second

// backend serves a directory, and can be stopped and started again on the same socket.
type backend struct {
	t            *testing.T
	dir, socket  string
	cache        time.Duration
	announce     bool
	made, closed atomic.Int32
	connected    chan struct{}
	disconnected chan error
	stop         func()
}

func newBackend(t *testing.T, dir string, cache time.Duration) *backend {
	run, err := os.MkdirTemp("", "fs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	b := &backend{t: t, dir: dir, socket: filepath.Join(run, "s"), cache: cache,
		connected: make(chan struct{}, 8), disconnected: make(chan error, 8)}
	b.start()
	t.Cleanup(func() { b.stop() })
	return b
}

// closing closes the file system when its session ends.
type closing struct {
	*passthrough.FS
	b *backend
}

func (c closing) OnUnmount() {
	if err := c.FS.Close(); err != nil {
		c.b.t.Errorf("close: %v", err)
	}
	c.b.closed.Add(1)
}

func (b *backend) newFS(g virtiofs.Guest) (fuse.RawFileSystem, *fuse.MountOptions, error) {
	if g.Memory() < 64<<20 {
		b.t.Errorf("the guest has %d bytes of memory", g.Memory())
	}
	fs, err := passthrough.New(b.dir, passthrough.Options{EntryTimeout: b.cache, AttrTimeout: b.cache, NegativeTimeout: b.cache, ForeignPids: true,
		AnnounceSubmounts: b.announce && g.InitFlags&fuse.CAP_SUBMOUNTS != 0})
	if err != nil {
		return nil, nil, err
	}
	o := fs.MountOptions()
	b.made.Add(1)
	return closing{fs, b}, &o, nil
}

func (b *backend) start() {
	b.t.Helper()
	// The output, not the log package's: a lost connection is told there.
	log := slog.New(slog.NewTextHandler(b.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	s, err := virtiofs.Listen(b.socket, virtiofs.Options{Logger: log,
		OnConnect:    func() { b.connected <- struct{}{} },
		OnDisconnect: func(err error) { b.disconnected <- err },
		OnError:      func(err error) { b.t.Errorf("device: %v", err) },
	})
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, b.newFS) }()
	b.stop = func() {
		b.t.Helper()
		cancel()
		if err := within(b.t, done); err != nil {
			b.t.Errorf("Serve: %v", err)
		}
		b.stop = func() {}
	}
}

func within[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(limit):
		t.Fatal("timeout")
		panic("unreachable")
	}
}

func (b *backend) write(name, content string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), []byte(content), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *backend) expect(name, content string) {
	b.t.Helper()
	got, err := os.ReadFile(filepath.Join(b.dir, name))
	if err != nil || string(got) != content {
		b.t.Errorf("host: %s is %q, %v; want %q", name, got, err, content)
	}
}

func same(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestGuest(t *testing.T) {
	b := newBackend(t, t.TempDir(), 0)
	b.write("from-host", "hello")
	if err := os.Mkdir(filepath.Join(b.dir, "big"), 0o755); err != nil {
		t.Fatal(err)
	}
	vm := vmtest.Start(t, vmtest.Options{Shares: []vmtest.Share{{Socket: b.socket, Tag: "host"}}})
	vm.Mount("host", "/mnt")
	sub := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			vm.Use(t)
			f(t)
		})
	}
	sub("both ways", func(t *testing.T) {
		same(t, "content", vm.Run("cat /mnt/from-host"), "hello")
		vm.Run("echo -n guest > /mnt/from-guest; mkdir /mnt/d; mv /mnt/from-guest /mnt/d/moved; ln -s moved /mnt/d/link")
		b.expect("d/moved", "guest")
		b.expect("d/link", "guest")
		b.write("later", "x")
		same(t, "listing", vm.Run("ls /mnt; rm -r /mnt/d; cat /mnt/later; rm /mnt/later"), "big\nd\nfrom-host\nlater\nx")
		if list, err := os.ReadDir(b.dir); err != nil || len(list) != 2 {
			t.Errorf("host: %v, %v", list, err)
		}
	})
	sub("posix", func(t *testing.T) {
		same(t, "report", vm.Run("mkdir /mnt/posix; guestd posix /mnt/posix; rm -r /mnt/posix"), "")
	})
	sub("events", func(t *testing.T) {
		w := vm.Watch(unix.IN_CREATE|unix.IN_DELETE, "/mnt")
		vm.Run("touch /mnt/one; rm /mnt/one; touch /mnt/end; rm /mnt/end")
		if got := w.Until("end"); len(got) != 3 {
			t.Errorf("events of the guest itself: %+v", got)
		}
		w.Close()
	})
	sub("large files", func(t *testing.T) { largeFiles(t, b, vm) })
	sub("pause", func(t *testing.T) {
		vm.Run("mkfifo /tmp/go; (exec 3>/mnt/held; echo before >&3; cat /tmp/go >&3) >/dev/null 2>&1 </dev/null &")
		vm.QMP("stop")
		vm.QMP("cont")
		vm.Run("echo after > /tmp/go; while ! grep -q after /mnt/held; do :; done")
		b.expect("held", "before\nafter\n")
		if n := b.made.Load(); n != 1 {
			t.Errorf("%d sessions after a pause", n)
		}
	})
	sub("unmount", func(t *testing.T) {
		vm.Run("umount /mnt")
		if n := b.closed.Load(); n != 1 {
			t.Errorf("%d sessions ended", n)
		}
		vm.Mount("host", "/mnt")
		same(t, "content", vm.Run("cat /mnt/from-host"), "hello")
	})
	sub("reset", func(t *testing.T) {
		vm.Reset()
		vm.Mount("host", "/mnt")
		same(t, "content", vm.Run("cat /mnt/from-host"), "hello")
		if made, closed := b.made.Load(), b.closed.Load(); made != 3 || closed != 2 {
			t.Errorf("%d sessions made, %d ended", made, closed)
		}
	})
}

func largeFiles(t *testing.T, b *backend, vm *vmtest.VM) {
	content := make([]byte, 24<<20+12345)
	if _, err := rand.NewChaCha8([32]byte{7}).Read(content); err != nil {
		t.Fatal(err)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(content))
	if err := os.WriteFile(filepath.Join(b.dir, "big/host"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	got := vm.Run("sha256sum < /mnt/big/host; cp /mnt/big/host /mnt/big/guest; sync")
	same(t, "checksum in the guest", strings.Fields(got)[0], sum)
	back, err := os.ReadFile(filepath.Join(b.dir, "big/guest"))
	if err != nil || !bytes.Equal(back, content) {
		t.Errorf("the copy has %d bytes and differs, %v", len(back), err)
	}
}

// TestMachines: one VMM after the other, with one request queue and with three. The second one's running guest gets its mount back
// from a new back-end by a new device.
func TestMachines(t *testing.T) {
	b := newBackend(t, t.TempDir(), 0)
	for i := range 2 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			share := vmtest.Share{Socket: b.socket, Tag: "host", Queues: 1 + 2*i, Hotplug: i == 1}
			vm := vmtest.Start(t, vmtest.Options{Shares: []vmtest.Share{share}})
			vm.Mount("host", "/mnt")
			vm.Run(fmt.Sprintf("echo -n %d > /mnt/f%d", i, i))
			if i == 0 {
				return
			}
			b.stop()
			if err := within(t, b.disconnected); err != nil {
				t.Error(err)
			}
			vm.Detach(0)
			b.start()
			vm.Attach(0, share)
			vm.Run("umount /mnt; until mount -t virtiofs host /mnt; do :; done")
			same(t, "content after the restart", vm.Run("cat /mnt/f0; echo -n second > /mnt/f"), "0")
			b.expect("f", "second")
		})
		if err := within(t, b.disconnected); err != nil {
			t.Error(err)
		}
		b.expect(fmt.Sprint("f", i), fmt.Sprint(i))
	}
	if made, closed := b.made.Load(), b.closed.Load(); made != 3 || closed != 3 {
		t.Errorf("%d sessions made, %d ended", made, closed)
	}
}

// TestSubmounts: two file systems below DIR that number alike are two file systems in the guest, or one if not announced.
func TestSubmounts(t *testing.T) {
	testenv.Need(t, testenv.Root)
	dir := t.TempDir()
	for _, d := range []string{"one", "two"} {
		d = filepath.Join(dir, d)
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("none", d, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(d, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		if err := os.WriteFile(filepath.Join(d, "f"), []byte(d), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	on, off := newBackend(t, dir, time.Hour), newBackend(t, dir, time.Hour)
	on.announce = true
	vm := vmtest.Start(t, vmtest.Options{Shares: []vmtest.Share{{Socket: on.socket, Tag: "on"}, {Socket: off.socket, Tag: "off"}}})
	vm.Mount("on", "/on")
	vm.Mount("off", "/off")
	vm.Run("ls -lR /on /off >/dev/null")
	fields := func(dir string) (f [3][2]string) {
		for i, l := range strings.Split(vm.Run("stat -c '%d %i' "+dir+"/. "+dir+"/one/f "+dir+"/two/f"), "\n") {
			copy(f[i][:], strings.Fields(l))
		}
		return f
	}
	var hostIno [2]string
	for i, d := range []string{"one", "two"} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, d, "f"), &st); err != nil {
			t.Fatal(err)
		}
		hostIno[i] = fmt.Sprint(st.Ino)
	}
	if hostIno[0] != hostIno[1] {
		t.Fatalf("the host numbers them %v: the test is none", hostIno)
	}
	f := fields("/on")
	if f[1][1] != hostIno[0] || f[2][1] != hostIno[1] || f[1][0] == f[2][0] || f[0][0] == f[1][0] || f[0][0] == f[2][0] {
		t.Errorf("announced: root, one/f, two/f are %v; the files have %v on the host", f, hostIno)
	}
	f = fields("/off")
	if f[1][1] == f[2][1] || f[0][0] != f[1][0] || f[0][0] != f[2][0] {
		t.Errorf("not announced: root, one/f, two/f are %v", f)
	}
	same(t, "find -xdev, announced", vm.Run("find /on -xdev -type f | wc -l; grep -c ' /on/' /proc/mounts"), "0\n2")
	same(t, "find -xdev, not announced", vm.Run("find /off -xdev -type f | wc -l; grep -c ' /off' /proc/mounts"), "2\n1")
	same(t, "content", vm.Run("cat /on/one/f; echo -n new > /on/two/f; mv /on/one/f /on/one/g; umount /on"), filepath.Join(dir, "one"))
	on.expect("two/f", "new")
	on.expect("one/g", filepath.Join(dir, "one"))
	if n := on.closed.Load(); n != 1 {
		t.Errorf("%d sessions ended by umount", n)
	}
}
