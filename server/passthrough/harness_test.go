package passthrough

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// mountPassthrough shows src in a guest mount for the duration of the test.
func mountPassthrough(t testing.TB, src string, opts Options) (mnt string, fs *FS) {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.FUSE)
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	}
	fs, err := New(src, opts)
	if err != nil {
		t.Fatal(err)
	}
	mnt = t.TempDir()
	backing, _ := opts.Backing.(*testBacking)
	mo := fs.MountOptions()
	mo.AllowOther = true
	mo.DirectMountStrict = true
	mo.Options = append(mo.Options, "dev", "suid") // as the native side of a comparison
	srv, err := fuse.NewServer(fs, mnt, &mo)
	if err != nil {
		t.Fatal(err)
	}
	if backing != nil {
		backing.srv = srv
	}
	go srv.Serve()
	if err := srv.WaitMount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
			unix.Unmount(mnt, unix.MNT_DETACH)
			srv.Wait()
		}
		fs.Close()
	})
	return mnt, fs
}

// testBacking is a Backing of go-fuse's server.
type testBacking struct{ srv *fuse.Server }

func (b *testBacking) BackingOpen(fd int) (int32, error) {
	id, errno := b.srv.RegisterBackingFd(&fuse.BackingMap{Fd: int32(fd)})
	if errno != 0 {
		return 0, errno
	}
	return id, nil
}

func (b *testBacking) BackingClose(id int32) error {
	if errno := b.srv.UnregisterBackingFd(id); errno != 0 {
		return errno
	}
	return nil
}

func (b *testBacking) StaleAttr(nodeid uint64) { b.srv.InodeNotify(nodeid, -1, 0) }

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

func mountAt(t testing.TB, fstype, dir, data string) {
	t.Helper()
	if err := unix.Mount("none", dir, fstype, 0, data); err != nil {
		t.Fatalf("mount %s: %v", fstype, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
}

func sub(t testing.TB, dir string) string {
	t.Helper()
	dir = filepath.Join(dir, "src")
	must(t, os.Mkdir(dir, 0o755))
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openFDs(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(names)
}
