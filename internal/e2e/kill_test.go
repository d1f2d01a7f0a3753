package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kill ends the daemon without a chance to clean up.
func (d *daemon) kill() {
	d.t.Helper()
	d.killed = true
	d.cmd.Process.Kill()
	select {
	case <-d.ended:
	case <-time.After(patience):
		// Frees whoever hangs with it, so that the test can end.
		out, _ := heraldfs(d.t, "umount", "--force", d.mnt)
		d.t.Fatalf("a killed daemon does not go; umount --force said %q", out)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(d.mnt, &st); err != unix.ENOTCONN && err != unix.ECONNABORTED && err != unix.ECANCELED {
		d.t.Fatalf("the mount of a killed daemon: %v", err)
	}
}

// TestKillUnderLoad kills the daemon while guests read what the host writes: somewhere in
// its replay, and in what it tells the guest's kernel of pages that are being read.
func TestKillUnderLoad(t *testing.T) {
	needFUSE(t)
	dirs := place(t, "src", "mnt")
	src, mnt := dirs[0], dirs[1]
	for i := range 20 {
		write(t, fmt.Sprintf("%s/f%d", src, i), strings.Repeat("x", 1<<16))
	}
	for round := range 8 {
		d := serve(t, src, mnt, "--watcher="+backends[round%2])
		d.troubled = true // it says that it removed a dead mount
		stop, written := make(chan struct{}), make(chan error, 1)
		go func() { written <- rewrite(src, stop) }()
		// Not from here: a thread that hangs in the mount would keep the test from ending.
		reader := exec.Command("sh", "-c", "while :; do cat "+mnt+"/* >/dev/null 2>&1; echo; done")
		out, err := reader.StdoutPipe()
		check(t, err)
		check(t, reader.Start())
		passes := bufio.NewReader(out)
		for range 3 + 5*round {
			_, err := passes.ReadString('\n')
			check(t, err)
		}
		d.kill()
		// The reader is not stuck: it goes on, with errors.
		_, err = passes.ReadString('\n')
		check(t, err)
		check(t, reader.Process.Kill())
		reader.Wait()
		close(stop)
		check(t, <-written)
	}
	must(t, "umount", mnt)
	d := serve(t, src, mnt)
	if got, want := read(t, mnt+"/g0"), read(t, src+"/g0"); got != want {
		t.Errorf("read %d bytes, must be %d", len(got), len(want))
	}
	d.stop(unix.SIGTERM)
}

// rewrite writes and renames files in dir until stop.
func rewrite(dir string, stop <-chan struct{}) error {
	text := []byte(strings.Repeat("y", 1<<16))
	for i := 0; ; i = (i + 1) % 20 {
		f, g := fmt.Sprintf("%s/f%d", dir, i), fmt.Sprintf("%s/g%d", dir, i)
		if err := os.WriteFile(f, text, 0o644); err != nil {
			return err
		}
		if err := os.Rename(f, g); err != nil {
			return err
		}
		select {
		case <-stop:
			return nil
		default:
		}
	}
}

// TestUmountForce takes away a mount whose daemon hangs, and whoever waited for it goes on.
func TestUmountForce(t *testing.T) {
	needFUSE(t)
	dirs := place(t, "src", "mnt")
	write(t, dirs[0]+"/f", "x")
	d := serve(t, dirs[0], dirs[1])
	d.killed = true
	check(t, d.cmd.Process.Signal(unix.SIGSTOP))
	reader := exec.Command("cat", dirs[1]+"/f")
	check(t, reader.Start())
	ended := make(chan error, 1)
	go func() { ended <- reader.Wait() }()
	eventually(t, "the reader waits", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", reader.Process.Pid))
		_, rest, _ := strings.Cut(string(stat), "cat) ")
		return err == nil && (strings.HasPrefix(rest, "D ") || strings.HasPrefix(rest, "S "))
	})
	must(t, "umount", "--force", dirs[1])
	if isMounted(t, dirs[1]) {
		t.Error("still mounted")
	}
	goOn := func() { check(t, d.cmd.Process.Signal(unix.SIGCONT)) }
	if overIOURing() {
		// A request that has got as far as a thread that is stopped cannot be taken from it.
		goOn()
		goOn = func() {}
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a file was read that nobody served")
		}
	case <-time.After(patience):
		reader.Process.Kill()
		t.Error("whoever waited for the daemon still does")
	}
	// It finds its connection gone, and ends in good order.
	goOn()
	d.ends("SIGCONT")
}

// TestAborted has a daemon find that somebody else aborted its connection: it leaves nothing behind.
func TestAborted(t *testing.T) {
	needFUSE(t)
	dirs := place(t, "src", "mnt")
	d := serve(t, dirs[0], dirs[1])
	d.killed = true
	shell := exec.Command("sleep", "60")
	shell.Dir = dirs[1]
	check(t, shell.Start())
	defer func() {
		shell.Process.Kill()
		shell.Wait()
	}()
	if err := unix.Unmount(dirs[1], unix.MNT_FORCE); err != unix.EBUSY {
		t.Errorf("umount -f of a mount in use: %v", err)
	}
	if d.ends("an abort") && isMounted(t, dirs[1]) {
		t.Errorf("a dead mount is left behind:\n%s", d.log)
	}
}

// TestUmountDeadBusy takes off the mount of a dead daemon though somebody stands in it.
func TestUmountDeadBusy(t *testing.T) {
	needFUSE(t)
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
	if out, code := heraldfs(t, "umount", dirs[1]); code != 1 || !strings.Contains(out, "in use") || !strings.Contains(out, "--force") {
		t.Errorf("umount of a mount in use: exit %d: %s", code, out)
	}
	d.kill()
	must(t, "umount", dirs[1])
	if isMounted(t, dirs[1]) {
		t.Error("still mounted")
	}
}
