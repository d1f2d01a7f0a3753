package fusedev

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/hanwen/go-fuse/v2/posixtest"
	"github.com/heraldfs/heraldfs/internal/testenv"
)

// TestPosix runs go-fuse's suite over its loopback file system through our device.
func TestPosix(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	for name, test := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			source := filepath.Join(t.TempDir(), "source")
			point := filepath.Join(t.TempDir(), "mnt")
			for _, dir := range []string{source, point} {
				if err := os.Mkdir(dir, 0o777); err != nil {
					t.Fatal(err)
				}
			}
			root, err := fs.NewLoopbackRoot(source)
			if err != nil {
				t.Fatal(err)
			}
			second := time.Second
			raw := fs.NewNodeFS(root, &fs.Options{EntryTimeout: &second, AttrTimeout: &second})
			conn, err := Mount(point, raw, Options{AllowOther: true, Fuse: fuse.MountOptions{EnableLocks: true, EnableAcl: true}})
			if err != nil {
				t.Fatal(err)
			}
			start(t, conn)
			// Before the unmount that start has set, and also if the test ends itself.
			t.Cleanup(func() { awaitRelease(t, source) })
			test(t, point)
		})
	}
}

// awaitRelease waits until the loopback has closed what it had open below source. The kernel tells it
// of a close some time later, and of one that is still to be told at the unmount, never; go-fuse
// then keeps the descriptor.
func awaitRelease(t *testing.T, source string) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(entries, func(e os.DirEntry) bool {
			target, err := os.Readlink("/proc/self/fd/" + e.Name())
			return err == nil && strings.HasPrefix(target, source)
		}) {
			return
		}
	}
	t.Errorf("something below %s is still open", source)
}

// TestOneP runs part of the tests with a single P, where a server that needs two
// would hang.
func TestOneP(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	runAgain(t, "with GOMAXPROCS=1", []string{"GOMAXPROCS=1"}, "-test.run=^(TestPosix|TestSlowHandler|TestLockWait|TestNotify.*)$")
}

// TestOverIOURing runs all tests while the kernel offers FUSE over io_uring, so that their mounts take it.
func TestOverIOURing(t *testing.T) {
	if os.Getenv(overIOURingEnv) != "" {
		return // this is the run that was asked for
	}
	testenv.SwitchOnIOURing(t)
	conn := serve(t, newMemFS(), Options{})
	if !conn.OverIOURing() {
		t.Fatal("requests are read from the device")
	}
	runAgain(t, "over io_uring", []string{overIOURingEnv + "=yes"}, "-test.run=.")
	if conn := serve(t, newMemFS(), Options{IOURing: IOURingOff}); conn.OverIOURing() {
		t.Error("IOURingOff has no effect")
	}
}

// overIOURingEnv is set in the tests' second run.
const overIOURingEnv = "FUSEDEV_OVER_IOURING"

// runAgain runs tests in another process.
func runAgain(t *testing.T, how string, env []string, which string) {
	t.Helper()
	const limit = 10 * patience
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := helperCommand(t, "", nil, env, which, "-test.timeout="+limit.String())
	var out []byte
	finished := make(chan error, 1)
	go func() {
		var err error
		out, err = outputOf(cmd)
		finished <- err
	}()
	select {
	case err := <-finished:
		if err != nil {
			t.Errorf("%s: %v\n%s", how, err, out)
		}
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		t.Fatalf("%s: hangs", how)
	}
}
