package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if kind := os.Getenv("TESTENV_LEAK"); kind != "" {
		top := os.Getenv("TMPDIR")
		os.Exit(leakRun(func() int { return leak(kind, top) }, top, 300*time.Millisecond))
	}
	LeakMain(m)
}

// leak leaves something behind on purpose.
func leak(kind, top string) int {
	var err error
	switch kind {
	case "descriptor":
		_, err = unix.Open("/dev/null", unix.O_RDONLY, 0)
	case "goroutine":
		go func() { select {} }()
	case "thread":
		ready := make(chan error)
		go func() {
			runtime.LockOSThread()
			_, _, errno := unix.RawSyscall(unix.SYS_SETFSUID, 12345, 0, 0)
			if errno != 0 {
				ready <- errno
			}
			runtime.UnlockOSThread()
			close(ready)
		}()
		err = <-ready
	case "process":
		err = exec.Command("sleep", "30").Start()
	case "mount":
		dir := filepath.Join(top, "a b")
		if err = os.Mkdir(dir, 0o755); err == nil {
			err = unix.Mount("tmpfs", dir, "tmpfs", 0, "")
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot leak:", err)
		return 2
	}
	return 0
}

// TestLeaks lets a copy of this test binary leak one of each.
func TestLeaks(t *testing.T) {
	for kind, want := range map[string]string{
		"descriptor": "leaked: descriptor", "goroutine": "leaked: goroutine",
		"thread": "12345", "process": "leaked: process", "mount": "/a b\n", "nothing": "",
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			if kind == "mount" || kind == "thread" {
				Need(t, Root)
			}
			top := t.TempDir()
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "TESTENV_LEAK="+kind, "TMPDIR="+top)
			cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if kind == "process" {
				// Its child inherits our pipe, which would keep Wait waiting.
				file, err := os.Create(filepath.Join(top, "out"))
				if err != nil {
					t.Fatal(err)
				}
				defer file.Close()
				cmd.Stdout, cmd.Stderr = file, file
			}
			err := cmd.Run()
			if kind == "process" {
				unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
				text, _ := os.ReadFile(filepath.Join(top, "out"))
				out.Write(text)
			}
			var exit *exec.ExitError
			if kind == "nothing" {
				if err != nil {
					t.Fatalf("found a leak where none is: %v\n%s", err, out.String())
				}
				return
			}
			if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(out.String(), want) {
				t.Fatalf("leaked a %s: %v, want exit status 1 and %q\n%s", kind, err, want, out.String())
			}
		})
	}
}

func TestFileSystems(t *testing.T) {
	Need(t, Root, Loop)
	magic := map[string]int64{
		"ext4": unix.EXT4_SUPER_MAGIC, "tmpfs": unix.TMPFS_MAGIC, "xfs": unix.XFS_SUPER_MAGIC,
		"btrfs": unix.BTRFS_SUPER_MAGIC, "btrfs-subvolume": unix.BTRFS_SUPER_MAGIC, "overlay": unix.OVERLAYFS_SUPER_MAGIC,
	}
	for _, fs := range FileSystems() {
		t.Run(fs.Name, func(t *testing.T) {
			var dir string
			t.Run("life", func(t *testing.T) {
				dir = fs.Make(t)
				var st unix.Statfs_t
				if err := unix.Statfs(dir, &st); err != nil {
					t.Fatal(err)
				}
				if st.Type != magic[fs.Name] {
					t.Errorf("magic %#x, want %#x", st.Type, magic[fs.Name])
				}
				if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644); err != nil {
					t.Error(err)
				}
				mark(t, fs.Name, dir)
			})
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is still there: %v", dir, err)
			}
		})
	}
}

// mark tries a fanotify file system mark: a test that wants one to be refused
// relies on these.
func mark(t *testing.T, name, dir string) {
	Need(t, Fanotify)
	fd, err := unix.FanotifyInit(unix.FAN_CLOEXEC|unix.FAN_CLASS_NOTIF|unix.FAN_REPORT_DFID_NAME_TARGET, unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_CREATE|unix.FAN_ONDIR, unix.AT_FDCWD, dir)
	want := map[string]error{"btrfs-subvolume": unix.EXDEV, "overlay": unix.EOPNOTSUPP}[name]
	if !errors.Is(err, want) {
		t.Errorf("file system mark on %s: %v, want %v", name, err, want)
	}
}

// TestBusyUnmount keeps a file open past the end of its file system.
func TestBusyUnmount(t *testing.T) {
	Need(t, Root)
	inner := &recorder{TB: t}
	dir := Mount(inner, "tmpfs", "tmpfs", 0, "")
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	inner.cleanup()
	f.Close()
	if inner.errors != 1 {
		t.Errorf("%d errors for a busy unmount, want 1", inner.errors)
	}
	if got := mountPoints(filepath.Dir(dir)); len(got) != 0 {
		t.Errorf("still mounted: %v", got)
	}
}

// recorder is a testing.TB that notes how a test ends.
type recorder struct {
	testing.TB
	cleanup         func()
	errors          int
	failed, skipped string
}

func (r *recorder) Cleanup(f func())      { r.cleanup = f }
func (r *recorder) Errorf(string, ...any) { r.errors++ }
func (r *recorder) Skip(args ...any)      { r.skipped = fmt.Sprint(args...); runtime.Goexit() }
func (r *recorder) Fatalf(f string, args ...any) {
	r.failed = fmt.Sprintf(f, args...)
	runtime.Goexit()
}

func TestNeed(t *testing.T) {
	outcome := func(need func(testing.TB)) *recorder {
		r := &recorder{TB: t}
		done := make(chan struct{})
		go func() {
			defer close(done)
			need(r)
		}()
		<-done
		return r
	}
	missing := func(t testing.TB) { NeedTool(t, "no-such-program") }

	t.Setenv("CI", "")
	if r := outcome(missing); r.failed != "" || !strings.Contains(r.skipped, "no-such-program") {
		t.Errorf("at home: failed %q, skipped %q, want skipped", r.failed, r.skipped)
	}
	t.Setenv("CI", "true")
	if r := outcome(missing); r.skipped != "" || !strings.Contains(r.failed, "no-such-program") {
		t.Errorf("in CI: failed %q, skipped %q, want failed", r.failed, r.skipped)
	}
	if r := outcome(func(t testing.TB) { Need(t, Capability(99)) }); !strings.Contains(r.failed, "no such capability") {
		t.Errorf("an unknown capability: failed %q", r.failed)
	}
	if r := outcome(func(t testing.TB) { NeedTool(t, "sh") }); r.failed+r.skipped != "" {
		t.Errorf("sh: failed %q, skipped %q", r.failed, r.skipped)
	}
}
