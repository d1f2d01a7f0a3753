package fusedev

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"golang.org/x/sys/unix"
)

// census counts what a connection could leave behind.
func census(t *testing.T) (fds, threads, goroutines, mounts int) {
	t.Helper()
	list := func(dir string) int {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	entries, err := readMounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.point, "/"+t.Name()) {
			mounts++
		}
	}
	return list("/proc/self/fd"), list("/proc/self/task"), runtime.NumGoroutine(), mounts
}

func TestHundredMounts(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	point := t.TempDir()
	cycle := func(i int) {
		m := newMemFS()
		conn, err := Mount(point, m, Options{})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- conn.Serve(t.Context()) }()
		if err := conn.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		root := -1
		if i%2 == 0 {
			if root, err = conn.PrivateRoot(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(filepath.Join(point, "file")); err != nil {
			t.Fatal(err)
		}
		if err := conn.Unmount(); err != nil {
			t.Fatal(err)
		}
		if root >= 0 {
			unix.Close(root)
		}
		if err := await(t, "Serve ends", done); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 10 { // until the runtime has the threads it wants
		cycle(i)
	}
	fds, threads, goroutines, mounts := census(t)
	for i := range 100 {
		cycle(i)
	}
	fds2, threads2, goroutines2, mounts2 := census(t)
	// What has answered the last of them may still be on its way out.
	for deadline := time.Now().Add(patience); (fds2 > fds || goroutines2 > goroutines) && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		fds2, threads2, goroutines2, mounts2 = census(t)
	}
	if fds2 > fds || goroutines2 > goroutines || mounts2 != 0 || mounts != 0 {
		t.Errorf("descriptors %d -> %d, goroutines %d -> %d, mounts %d -> %d", fds, fds2, goroutines, goroutines2, mounts, mounts2)
	}
	// The runtime keeps threads for reuse; 100 connections would show.
	if threads2 > threads+8 {
		t.Errorf("threads %d -> %d", threads, threads2)
	}
}

func TestKillAndRemount(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	base := t.TempDir()
	point := filepath.Join(base, "real")
	link := filepath.Join(base, "link")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", link); err != nil {
		t.Fatal(err)
	}
	for range 2 { // dead mounts can lie on top of each other
		cmd, said := startHelper(t, "serve", nil, nil, point)
		if said != "ready" {
			t.Fatalf("helper: %s", said)
		}
		// The second look at the root leaves its attributes with the kernel.
		for _, path := range []string{filepath.Join(point, "file"), point, point} {
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		var fs unix.Statfs_t
		// With io_uring the kernel's end of the connection can come a moment after the process's.
		if err := unix.Statfs(point, &fs); !Dead(err) {
			t.Fatalf("statfs of a dead mount: %v", err)
		}
	}
	if _, err := Mount(link, newMemFS(), Options{Subtype: "other"}); !errors.Is(err, ErrStale) {
		t.Errorf("mount over a dead mount of another kind: %v", err)
	}
	conn, err := Mount(link, newMemFS(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	start(t, conn)
	if conn.Mountpoint() != point {
		t.Errorf("mount point %s", conn.Mountpoint())
	}
	if _, err := os.Stat(filepath.Join(point, "file")); err != nil {
		t.Error(err)
	}
	within(t, "close", conn.Close)
	entries, err := readMounts()
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := topMount(entries, point); ok {
		t.Errorf("left behind: %+v", e)
	}
}

func TestTermUnmounts(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	point := t.TempDir()
	cmd, said := startHelper(t, "serve", nil, nil, point)
	if said != "ready" {
		t.Fatalf("helper: %s", said)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	within(t, "the helper ends", cmd.Wait)
	if _, err := os.Stat(filepath.Join(point, "file")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after SIGTERM: %v", err)
	}
}

// TestUnprivileged mounts as nobody, through fusermount.
func TestUnprivileged(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	testenv.NeedTool(t, "fusermount3")
	const nobody = 65534
	base, err := os.MkdirTemp("", "fusedev")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	point := filepath.Join(base, "mnt, with \\ things")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(base, 0o755), os.Chown(point, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	nobodyAttr := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}

	st, err := os.Stat(devicePath)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(devicePath, st.Mode().Perm()) })
	if st.Mode().Perm()&0o006 == 0 {
		cmd, said := startHelper(t, "serve", nobodyAttr, nil, point)
		_ = cmd.Wait()
		if !strings.Contains(said, ErrNoDevice.Error()) || !strings.Contains(said, devicePath) {
			t.Errorf("without access to the device: %s", said)
		}
	}
	if err := os.Chmod(devicePath, 0o666); err != nil {
		t.Fatal(err)
	}
	conf, _ := os.ReadFile("/etc/fuse.conf")
	if !strings.Contains("\n"+string(conf), "\nuser_allow_other") {
		cmd, said := startHelper(t, "serve", nobodyAttr, []string{"FUSEDEV_ALLOW_OTHER=1"}, point)
		_ = cmd.Wait()
		if !strings.Contains(said, ErrAllowOther.Error()) {
			t.Errorf("with allow_other: %s", said)
		}
	}
	cmd, said := startHelper(t, "serve", nobodyAttr, nil, point)
	if said != "ready" {
		t.Fatalf("helper: %s", said)
	}
	entries, err := readMounts()
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := topMount(entries, point); !ok || e.fsType != "fuse.heraldfs" {
		t.Errorf("mounted as %+v", e)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	within(t, "the helper ends", cmd.Wait)
	if entries, err = readMounts(); err != nil {
		t.Fatal(err)
	}
	if e, ok := topMount(entries, point); ok {
		t.Errorf("left behind: %+v", e)
		_ = unix.Unmount(point, unix.MNT_DETACH)
	}
}

func TestParseMounts(t *testing.T) {
	entries, err := parseMounts(strings.NewReader(
		`36 35 98:0 /mnt1 /mnt\0402\134 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
37 36 0:41 / /mnt - tmpfs none rw
`))
	// The second line has no options before the dash.
	if err == nil {
		t.Errorf("a short line was read as %+v", entries)
	}
	entries, err = parseMounts(strings.NewReader("36 35 98:7 /mnt1 /mnt\\0402\\134 rw - fuse.heraldfs a rw\n"))
	want := mountEntry{id: 36, major: 98, minor: 7, point: `/mnt 2\`, fsType: "fuse.heraldfs"}
	if err != nil || len(entries) != 1 || entries[0] != want {
		t.Errorf("%+v, %v", entries, err)
	}
}

// notClosed reports that c stays open while f runs and fails the test otherwise.
func notClosed(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
		t.Fatalf("too early: %s", what)
	default:
	}
}

// TestPrivateRoot works through a private root of a read-only mount, sees the
// visible mount go while it is in use, and ends the connection by letting go.
func TestPrivateRoot(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	m := newMemFS()
	conn, err := Mount(t.TempDir(), m, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	root, err := conn.PrivateRoot() // before anybody serves
	if err != nil {
		t.Fatal(err)
	}
	done := start(t, conn)
	if err := unix.Mkdir(filepath.Join(conn.Mountpoint(), "new"), 0o755); err != unix.EROFS {
		t.Errorf("mkdir in the read-only mount: %v", err)
	}
	if n := m.count("mkdir"); n != 0 {
		t.Errorf("%d MKDIR requests", n)
	}
	if err := unix.Mkdirat(root, "new", 0o755); err != nil || m.count("mkdir") != 1 {
		t.Errorf("mkdir through the private root: %v, %d MKDIR requests", err, m.count("mkdir"))
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(root, &fs); err != nil {
		t.Fatal(err)
	}
	const want = unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
	if fs.Flags&(want|unix.ST_RDONLY) != want {
		t.Errorf("flags of the private mount: %#x", fs.Flags)
	}
	dir, err := unix.Openat(root, "dir", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}

	notClosed(t, "Unmounted", conn.Unmounted())
	if err := unix.Unmount(conn.Mountpoint(), 0); err != nil {
		t.Fatalf("unmount while descriptors of the private root are open: %v", err)
	}
	await(t, "Unmounted is closed", conn.Unmounted())
	if conn.Mounted() {
		t.Error("Mounted after umount")
	}
	// The connection lives on for the sake of the descriptors.
	if err := unix.Mkdirat(dir, "late", 0o755); err != nil || m.count("mkdir") != 2 {
		t.Errorf("mkdir after the unmount: %v", err)
	}
	select {
	case err := <-done:
		t.Fatalf("Serve ended early: %v", err)
	default:
	}
	unix.Close(root)
	unix.Close(dir)
	if err := await(t, "Serve ends with the last descriptor", done); err != nil {
		t.Error(err)
	}
	if _, err := conn.PrivateRoot(); err == nil {
		t.Error("a private root after the end")
	}
}

// TestPrivateRootClose ends a connection whose private root nobody closes.
func TestPrivateRootClose(t *testing.T) {
	conn := serve(t, newMemFS(), Options{})
	root, err := conn.PrivateRoot()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	within(t, "close", conn.Close)
	if err := unix.Mkdirat(root, "x", 0o755); !Dead(err) {
		t.Errorf("mkdir after Close: %v", err)
	}
}

// TestBindKeepsServing unmounts ours while the same file system is mounted elsewhere.
func TestBindKeepsServing(t *testing.T) {
	m := newMemFS()
	conn := serve(t, m, Options{})
	root, err := conn.PrivateRoot()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	other := t.TempDir()
	if err := unix.Mount(conn.Mountpoint(), other, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	mounted := true
	defer func() {
		if mounted {
			_ = unix.Unmount(other, unix.MNT_DETACH)
		}
	}()
	if err := unix.Unmount(conn.Mountpoint(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(other, "file")); err != nil {
		t.Errorf("stat through the other mount: %v", err)
	}
	notClosed(t, "Unmounted", conn.Unmounted())
	if err := unix.Unmount(other, 0); err != nil {
		t.Fatal(err)
	}
	mounted = false
	select {
	case <-conn.Unmounted():
	case <-time.After(patience):
		t.Error("the end of the last mount was not noticed")
	}
}
