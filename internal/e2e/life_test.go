package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

func TestSignalsUnmount(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			dirs := place(t, "src", "mnt")
			d := serve(t, dirs[0], dirs[1])
			write(t, dirs[0]+"/f", "x")
			d.sync()
			if got := read(t, dirs[1]+"/f"); got != "x" {
				t.Fatalf("read %q", got)
			}
			d.stop(sig)
			if _, err := os.Stat(dirs[1] + "/f"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("after the end: %v", err)
			}
		})
	}
}

// A signal is a clean end even for a mount in use: whoever uses it gets ENOTCONN.
func TestSignalUnmountsBusy(t *testing.T) {
	dirs := place(t, "src", "mnt")
	d := serve(t, dirs[0], dirs[1])
	d.troubled = true // it says that the mount was in use
	write(t, dirs[0]+"/f", "x")
	f, err := os.Open(dirs[1] + "/f")
	check(t, err)
	defer f.Close()
	d.stop(unix.SIGTERM)
	// Attributes may still be cached; those of the file system never are.
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != unix.ENOTCONN && err != unix.ECONNABORTED && err != unix.ECANCELED {
		t.Errorf("an open file after the end: %v", err)
	}
}

// background mounts with --daemon and unmounts at the end of the test.
func background(t *testing.T, src, mnt string, args ...string) {
	t.Helper()
	must(t, append(append([]string{"mount", "--daemon"}, args...), src, mnt)...)
	t.Cleanup(func() {
		if isMounted(t, mnt) {
			unix.Unmount(mnt, unix.MNT_DETACH)
		}
		noProcess(t)
	})
}

// noProcess returns when no daemon runs any more.
func noProcess(t testing.TB) {
	t.Helper()
	eventually(t, "all daemons have ended", func() bool { return len(processes()) == 0 })
}

func TestDaemonReturnsWhenMounted(t *testing.T) {
	needFUSE(t)
	dirs := place(t, "src", "mnt")
	write(t, dirs[0]+"/f", "x")
	background(t, dirs[0], dirs[1])
	if got := read(t, dirs[1]+"/f"); got != "x" {
		t.Errorf("read %q", got)
	}
	e := listen(t, dirs[1], notify.DefaultMask)
	write(t, dirs[0]+"/g", "y")
	e.wait(".", "CLOSE_WRITE g")
	e.close()
	must(t, "umount", dirs[1])
	if isMounted(t, dirs[1]) {
		t.Error("still mounted")
	}
	noProcess(t)
}

func TestUnmountByOthers(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(mnt string) error
	}{
		{"umount(2)", func(mnt string) error { return unix.Unmount(mnt, 0) }},
		{"umount(2) lazily", func(mnt string) error { return unix.Unmount(mnt, unix.MNT_DETACH) }},
		{"umount(8)", func(mnt string) error { return exec.Command("umount", mnt).Run() }},
		{"fusermount3", func(mnt string) error { return exec.Command("fusermount3", "-u", mnt).Run() }},
		{"heraldfs umount", func(mnt string) error { return exec.Command(bin, "umount", mnt).Run() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dirs := place(t, "src", "mnt")
			d := serve(t, dirs[0], dirs[1])
			check(t, c.do(dirs[1]))
			d.ends(c.name)
		})
	}
}

func TestUmountBusy(t *testing.T) {
	dirs := place(t, "src", "mnt")
	d := serve(t, dirs[0], dirs[1])
	write(t, dirs[0]+"/f", "x")
	f, err := os.Open(dirs[1] + "/f")
	check(t, err)
	defer f.Close()
	out, code := heraldfs(t, "umount", dirs[1])
	if code != 1 || !strings.Contains(out, "in use") || !strings.Contains(out, "--lazy") || !strings.Contains(out, "fuser -vm "+dirs[1]) {
		t.Errorf("exit %d: %s", code, out)
	}
	if got := read(t, dirs[1]+"/f"); got != "x" {
		t.Errorf("the mount is broken after it: %q", got)
	}
	must(t, "umount", "--lazy", dirs[1])
	if isMounted(t, dirs[1]) {
		t.Error("still mounted")
	}
	// A file that is open cannot be kept coherent without the mount: it ends, too.
	d.ends("it was detached")
	if err := f.Close(); err != nil && !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.ECANCELED) {
		t.Error(err)
	}
}

func TestRemountAfterKill(t *testing.T) {
	dirs := place(t, "src", "mnt")
	write(t, dirs[0]+"/f", "x")
	for range 3 {
		serve(t, dirs[0], dirs[1]).kill()
	}
	d := serve(t, dirs[0], dirs[1])
	d.troubled = true // it says that it removed a dead mount
	if got := read(t, dirs[1]+"/f"); got != "x" {
		t.Errorf("read %q", got)
	}
	if n := len(mountsBelow(t, dirs[1])); n != 1 {
		t.Errorf("%d mounts on the mount point", n)
	}
}

func TestDaemonRemountAfterKill(t *testing.T) {
	dirs := place(t, "src", "mnt")
	serve(t, dirs[0], dirs[1]).kill()
	background(t, dirs[0], dirs[1])
	must(t, "sync", dirs[1])
	must(t, "umount", dirs[1])
}

func TestUmountAfterKill(t *testing.T) {
	dirs := place(t, "src", "mnt")
	serve(t, dirs[0], dirs[1]).kill()
	out, code := heraldfs(t, "sync", dirs[1])
	if code != 1 || !strings.Contains(out, "daemon is dead") {
		t.Errorf("sync: exit %d: %s", code, out)
	}
	must(t, "umount", dirs[1])
	if isMounted(t, dirs[1]) {
		t.Error("still mounted")
	}
}

// The dead mount may be busy: a shell stands in it.
func TestRemountAfterKillBusy(t *testing.T) {
	dirs := place(t, "src", "mnt")
	check(t, os.Mkdir(dirs[0]+"/sub", 0o755))
	d := serve(t, dirs[0], dirs[1])
	shell := exec.Command("sleep", "60")
	shell.Dir = dirs[1] + "/sub"
	check(t, shell.Start())
	defer func() {
		shell.Process.Kill()
		shell.Wait()
	}()
	d.kill()
	d = serve(t, dirs[0], dirs[1])
	d.troubled = true
	if _, err := os.Stat(dirs[1] + "/sub"); err != nil {
		t.Error(err)
	}
}

// A mount of another kind is nobody's to remove.
func TestStrangersStay(t *testing.T) {
	needFUSE(t)
	dirs := place(t, "src", "mnt")
	check(t, unix.Mount("none", dirs[1], "tmpfs", 0, ""))
	defer unix.Unmount(dirs[1], unix.MNT_DETACH)
	out, code := heraldfs(t, "umount", dirs[1])
	if code != 1 || !strings.Contains(out, "tmpfs") {
		t.Errorf("exit %d: %s", code, out)
	}
	if !isMounted(t, dirs[1]) {
		t.Error("the stranger is gone")
	}
}

func TestHundredMounts(t *testing.T) {
	needFUSE(t)
	dirs := place(t, "src", "mnt")
	write(t, dirs[0]+"/f", "x")
	for i := range 100 {
		backend := backends[i%len(backends)]
		d := serve(t, dirs[0], dirs[1], "--watcher="+backend)
		if i%10 == 0 {
			e := listen(t, dirs[1], notify.DefaultMask)
			write(t, dirs[0]+"/f", "y")
			e.wait(".", "CLOSE_WRITE f")
			e.close()
		}
		if i%2 == 0 {
			d.stop(unix.SIGTERM)
		} else {
			check(t, unix.Unmount(dirs[1], 0))
			<-d.ended
			d.stop(unix.SIGTERM)
		}
		if t.Failed() {
			t.Fatalf("round %d", i)
		}
	}
	if ps := processes(); len(ps) > 0 {
		t.Errorf("processes: %q", ps)
	}
	if points := mountsBelow(t, dirs[1]); len(points) > 0 {
		t.Errorf("mounts: %q", points)
	}
	// What the kernel knows of connections shows what is not in any mount table.
	if left, _ := filepath.Glob("/sys/fs/fuse/connections/*"); len(left) > 100 {
		t.Errorf("%d FUSE connections are left", len(left))
	}
}
