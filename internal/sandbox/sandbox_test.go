package sandbox

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

func TestMain(m *testing.M) { testenv.LeakMain(m) }

const limit = 30 * time.Second

// buildProbe builds testdata/probe as heraldfs is released: without C.
func buildProbe(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "probe-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "probe")
	cmd := exec.Command("go", "build", "-o", program, "./testdata/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return program
}

// site is a directory to be confined to, and a file beside it, on one file system.
type site struct{ dir, secret, handle string }

func newSite(t *testing.T, uid int) site {
	t.Helper()
	top, err := os.MkdirTemp("", "sandbox-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	s := site{dir: filepath.Join(top, "share"), secret: filepath.Join(top, "secret")}
	if err := errors.Join(os.Mkdir(s.dir, 0o755), os.WriteFile(s.secret, []byte("secret"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{top, s.dir, s.secret} {
		if err := os.Chown(p, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, s.secret, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.handle = fmt.Sprintf("%d:%s", h.Type(), hex.EncodeToString(h.Bytes()))
	return s
}

// TestEscape: a file server that was taken over reaches nothing outside, and an honest one can work.
func TestEscape(t *testing.T) {
	testenv.Need(t, testenv.Root)
	program := buildProbe(t)
	outside := []string{"read", "read-up", "passwd", "own-program", "create", "unlink", "tcp-refused-by-peer", "mount", "unshare",
		"chroot", "fanotify", "setuid-back", "handle"}
	for _, c := range []struct {
		mode  string
		uid   int
		works []string
	}{
		// That nothing is confined shows that each try is a real one.
		{"none", 0, outside},
		{"namespace", 0, nil},
		{"namespace-nohandles", 0, nil},
		{"chroot", 0, nil},
		{"landlock", 0, nil},
		{"landlock", 65534, nil},
		{"namespace", 65534, nil},
	} {
		t.Run(fmt.Sprint(c.mode, c.uid), func(t *testing.T) {
			if c.mode != "none" && landlockABI() < 4 {
				testenv.Lack(t, "some of it takes Landlock's ABI 4")
			}
			s := newSite(t, c.uid)
			cmd := exec.Command(program, c.mode, s.dir, s.secret, s.handle)
			var out, errs bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errs
			// In a mount namespace of its own: without a sandbox it mounts for real.
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(c.uid), Gid: uint32(c.uid)}, Unshareflags: unix.CLONE_NEWNS}
			if err := cmd.Run(); err != nil && c.mode != "none" {
				t.Fatalf("%v\n%s%s", err, &out, &errs)
			}
			lines := strings.Split(out.String(), "\n")
			if c.mode != "none" && !slices.Contains(lines, "serve works") {
				t.Errorf("an honest server: %s", &errs)
			}
			for _, what := range outside {
				if what == "handle" && c.mode == "namespace" && c.uid == 0 {
					continue // see the package comment
				}
				got, want := slices.Contains(lines, what+" works"), slices.Contains(c.works, what)
				if got != want || (!got && !slices.Contains(lines, what+" fails")) {
					t.Errorf("%s works: %v, want %v", what, got, want)
				}
			}
			if t.Failed() {
				t.Logf("%s%s", &out, &errs)
			}
		})
	}
}

// TestWatch: a watcher that was opened between Enter and Seal hears the host, and can mark directories that come later.
func TestWatch(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Fanotify)
	program := buildProbe(t)
	for _, mode := range []Mode{Namespace, Chroot, Landlock} {
		for _, backend := range []string{"fanotify", "inotify"} {
			t.Run(fmt.Sprint(mode, " ", backend), func(t *testing.T) {
				if mode == Landlock && landlockABI() < minABI {
					testenv.Lack(t, errNoLandlock(landlockABI()).Error())
				}
				s := newSite(t, 0)
				mountShared(t, s.dir)
				cmd := exec.Command(program, string(mode), s.dir, "watch", backend)
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				var errs bytes.Buffer
				cmd.Stderr = &errs
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				stuck := time.AfterFunc(limit, func() { cmd.Process.Kill() })
				defer stuck.Stop()
				lines, heard := bufio.NewReader(out), ""
				until := func(want string) {
					t.Helper()
					for line := ""; line != want+"\n"; heard += line {
						if line, err = lines.ReadString('\n'); err != nil {
							t.Fatalf("%q did not come: %v, %v\n%s%s", want, err, cmd.Wait(), heard, &errs)
						}
					}
				}
				until("ready")
				for _, step := range []struct {
					do   func() error
					want string
				}{
					{func() error { return os.Mkdir(s.dir+"/d", 0o755) }, "event d"},
					{func() error { return os.Mkdir(s.dir+"/look-d", 0o755) }, "mark works"},
					{func() error { return os.WriteFile(s.dir+"/d/f", nil, 0o644) }, "event f"},
					// What is mounted later is on a file system without a mark.
					{func() error { return os.Mkdir(s.dir+"/m", 0o755) }, "event m"},
					{func() error { return later(t, s.dir, s.dir+"/m") }, "mark works"},
					{func() error { return os.WriteFile(s.dir+"/m/g", nil, 0o644) }, "event g"},
					{func() error { return os.WriteFile(s.dir+"/end", nil, 0o644) }, "event end"},
				} {
					if err := step.do(); err != nil {
						t.Fatal(err)
					}
					until(step.want)
				}
				rest, err := io.ReadAll(lines)
				if err := errors.Join(err, cmd.Wait()); err != nil || strings.Contains(heard+string(rest), "mark fails") {
					t.Errorf("%v\n%s%s%s", err, heard, rest, &errs)
				}
			})
		}
	}
}

// mountShared mounts a tmpfs such that what is mounted in it later arrives in the namespaces that have it.
func mountShared(t *testing.T, dir string) {
	t.Helper()
	for _, m := range []struct {
		typ   string
		flags uintptr
	}{{"tmpfs", 0}, {"", unix.MS_SHARED}} {
		if err := unix.Mount("none", dir, m.typ, m.flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// later mounts a tmpfs on sub and has it looked up.
func later(t *testing.T, dir, sub string) error {
	if err := unix.Mount("none", sub, "tmpfs", 0, ""); err != nil {
		return err
	}
	t.Cleanup(func() { unix.Unmount(sub, unix.MNT_DETACH) })
	return os.Mkdir(filepath.Join(dir, "look-"+filepath.Base(sub)), 0o755)
}

// TestSupervise: neither process outlives the other, signals arrive, and the child's end is the parent's.
func TestSupervise(t *testing.T) {
	testenv.Need(t, testenv.Root)
	program := buildProbe(t)
	start := func(t *testing.T) (cmd *exec.Cmd, child int, ended chan error) {
		s := newSite(t, 0)
		cmd = exec.Command(program, "namespace", s.dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill() })
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
			t.Fatalf("%q, %v", line, err)
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		if err == nil && len(bytes.Fields(b)) == 0 {
			// It is the child of the thread that started it.
			b, err = childrenOf(cmd.Process.Pid)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(string(b), &child); err != nil {
			t.Fatal(err)
		}
		ended = make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		return cmd, child, ended
	}
	wait := func(t *testing.T, ended chan error) error {
		select {
		case err := <-ended:
			return err
		case <-time.After(limit):
			t.Fatal("it does not end")
			return nil
		}
	}
	t.Run("parent killed", func(t *testing.T) {
		cmd, child, ended := start(t)
		fd, err := unix.PidfdOpen(child, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		cmd.Process.Kill()
		wait(t, ended)
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int(limit/time.Millisecond)); n != 1 || err != nil {
			unix.Kill(child, unix.SIGKILL)
			t.Errorf("the child lives on: %d, %v", n, err)
		}
	})
	t.Run("child killed", func(t *testing.T) {
		_, child, ended := start(t)
		unix.Kill(child, unix.SIGKILL)
		var exit *exec.ExitError
		if err := wait(t, ended); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("the parent: %v", err)
		}
	})
	t.Run("SIGTERM", func(t *testing.T) {
		cmd, _, ended := start(t)
		cmd.Process.Signal(unix.SIGTERM)
		// The child has no handler: as the first of its namespace it exits 2 instead of dying of it.
		var exit *exec.ExitError
		if err := wait(t, ended); !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("the parent: %v", err)
		}
	})
}

func childrenOf(pid int) ([]byte, error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	var all []byte
	for _, l := range lists {
		b, err := os.ReadFile(l)
		if err != nil {
			return nil, err
		}
		all = append(all, b...)
	}
	return all, nil
}

func TestParse(t *testing.T) {
	for _, s := range []string{"", "none", "landlock", "chroot", "namespace"} {
		if m, err := Parse(s); err != nil || string(m) != s {
			t.Errorf("%q: %q, %v", s, m, err)
		}
	}
	if _, err := Parse("jail"); err == nil {
		t.Error("jail is a mode")
	}
}
