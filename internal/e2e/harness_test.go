package e2e

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify/replay"
)

const (
	// mark is in every path that a test makes, so that its mounts can be told.
	mark = "heraldfs-e2e"
	// patience bounds every wait.
	patience = 15 * time.Second
	readyFD  = "HERALDFS_READY_FD"
)

// backends are the watchers that everything has to work with.
var backends = []string{"fanotify", "inotify"}

// syncBuffer is a bytes.Buffer for one writer and any readers.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// place makes a directory that every user may enter, with the named directories in it.
func place(t testing.TB, names ...string) []string {
	t.Helper()
	top, err := os.MkdirTemp("", mark+"-")
	check(t, err)
	t.Cleanup(func() {
		if points := mountsBelow(t, top); len(points) > 0 {
			t.Errorf("still mounted: %q", points)
			return // never delete through a mount
		}
		if err := os.RemoveAll(top); err != nil {
			t.Error(err)
		}
	})
	check(t, os.Chmod(top, 0o755))
	var dirs []string
	for _, n := range names {
		dirs = append(dirs, filepath.Join(top, n))
		check(t, os.MkdirAll(dirs[len(dirs)-1], 0o755))
	}
	return dirs
}

// mountsBelow returns the mount points at or below dir.
func mountsBelow(t testing.TB, dir string) []string {
	t.Helper()
	f, err := os.Open("/proc/self/mountinfo")
	check(t, err)
	defer f.Close()
	var points []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if p := strings.Fields(s.Text())[4]; p == dir || strings.HasPrefix(p, dir+"/") {
			points = append(points, p)
		}
	}
	return points
}

// daemon is a `heraldfs mount` in the foreground.
type daemon struct {
	t        testing.TB
	cmd      *exec.Cmd
	src, mnt string
	log      *syncBuffer
	ended    chan struct{}
	err      error // of Wait; read it after ended
	// troubled says that the log may hold warnings and errors.
	troubled bool
	// killed says that the test ended it in a way that may leave things behind.
	killed bool
}

// serve mounts src on mnt and returns when the mount is ready. The test's end unmounts it and
// demands that this went well.
func serve(t testing.TB, src, mnt string, args ...string) *daemon {
	t.Helper()
	d, said := try(t, mountCommand(src, mnt, args...))
	if said != "ready" {
		<-d.ended
		t.Fatalf("mount %v: %s\n%s", args, said, d.log)
	}
	d.src, d.mnt = src, mnt
	t.Cleanup(func() { d.stop(unix.SIGTERM) })
	return d
}

// try starts a mount command and returns what it says about its readiness.
func try(t testing.TB, cmd *exec.Cmd) (*daemon, string) {
	t.Helper()
	needFUSE(t)
	r, w, err := os.Pipe()
	check(t, err)
	defer r.Close()
	d := &daemon{t: t, cmd: cmd, log: &syncBuffer{}, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = d.log, d.log
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = append(os.Environ(), readyFD+"=3")
	err = cmd.Start()
	w.Close()
	check(t, err)
	go func() {
		d.err = cmd.Wait()
		close(d.ended)
	}()
	t.Cleanup(func() {
		select {
		case <-d.ended:
		default:
			cmd.Process.Kill()
			<-d.ended
		}
	})
	check(t, r.SetReadDeadline(time.Now().Add(patience)))
	line, _ := bufio.NewReader(r).ReadString('\n')
	return d, strings.TrimSpace(line)
}

// stop ends the daemon with a signal and checks that it ended well. Idempotent.
func (d *daemon) stop(sig os.Signal) {
	d.t.Helper()
	select {
	case <-d.ended:
	default:
		d.cmd.Process.Signal(sig)
	}
	if !d.ends(sig.String()) {
		unix.Unmount(d.mnt, unix.MNT_DETACH)
		return
	}
	if d.killed {
		return
	}
	if d.err != nil {
		d.t.Errorf("the daemon ended with %v\n%s", d.err, d.log)
	}
	if log := d.log.String(); !d.troubled && (strings.Contains(log, "level=ERROR") || strings.Contains(log, "level=WARN")) {
		d.t.Errorf("the daemon's log:\n%s", log)
	}
	if isMounted(d.t, d.mnt) {
		d.t.Errorf("%s is still mounted", d.mnt)
		unix.Unmount(d.mnt, unix.MNT_DETACH)
	}
}

// ends waits for the daemon's end, and shows what it is doing if that does not come.
func (d *daemon) ends(why string) bool {
	d.t.Helper()
	select {
	case <-d.ended:
		return true
	case <-time.After(patience):
	}
	d.t.Errorf("the daemon does not end after: %s", why)
	d.cmd.Process.Signal(unix.SIGQUIT)
	<-d.ended
	d.t.Logf("its log and goroutines:\n%s", d.log)
	return false
}

func isMounted(t testing.TB, point string) bool {
	t.Helper()
	for _, p := range mountsBelow(t, point) {
		if p == point {
			return true
		}
	}
	return false
}

// sync returns when what was done on the host is visible and heard in the mount.
func (d *daemon) sync() {
	d.t.Helper()
	syncAt(d.t, d.mnt)
}

func syncAt(t testing.TB, mnt string) {
	t.Helper()
	var buf [16]byte
	for {
		_, err := unix.Getxattr(mnt, replay.SyncAttr, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatalf("sync %s: %v", mnt, err)
		}
		return
	}
}

// heraldfs runs the program and returns what it printed and its exit status.
func heraldfs(t testing.TB, args ...string) (string, int) {
	t.Helper()
	return finish(t, exec.Command(bin, args...))
}

func finish(t testing.TB, cmd *exec.Cmd) (string, int) {
	t.Helper()
	timer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer timer.Stop()
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// must runs the program and fails the test unless it exits 0.
func must(t testing.TB, args ...string) string {
	t.Helper()
	out, code := heraldfs(t, args...)
	if code != 0 {
		t.Fatalf("heraldfs %v: exit %d\n%s", args, code, out)
	}
	return out
}

// eventually waits for a condition that nothing tells us of, such as the end of
// a process that is not our child.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("in %s not: %s", patience, what)
		}
		time.Sleep(time.Millisecond)
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	check(t, os.WriteFile(path, []byte(text), 0o644))
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	check(t, err)
	return string(b)
}

// needFUSE skips a test where it cannot run; on a CI machine that is a failure.
func needFUSE(t testing.TB) {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.FUSE)
}

// mountCommand is `heraldfs mount`.
func mountCommand(src, mnt string, args ...string) *exec.Cmd {
	return exec.Command(bin, append(append([]string{"mount"}, args...), src, mnt)...)
}
