package passthrough

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// helpers are the other processes of tests. Each gets a path, says what it has done on its standard
// output, and goes on when it reads a line.
func helpers() map[string]func(path string) error {
	return map[string]func(string) error{
		"posixlock": func(path string) error { return holdLock(path, false, unix.F_SETLK) },
		"flock":     func(path string) error { return holdLock(path, true, unix.F_SETLK) },
		"waitposix": func(path string) error { return holdLock(path, false, unix.F_SETLKW) },
		"waitflock": func(path string) error { return holdLock(path, true, unix.F_SETLKW) },
		"manyfiles": manyFiles,
	}
}

func holdLock(path string, flock bool, cmd int) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Println("open")
	if flock {
		how := unix.LOCK_EX
		if cmd == unix.F_SETLK {
			how |= unix.LOCK_NB
		}
		err = unix.Flock(int(f.Fd()), how)
	} else {
		for {
			err = unix.FcntlFlock(f.Fd(), cmd, &unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 5})
			if err != unix.EINTR {
				break
			}
		}
	}
	fmt.Println("lock", err == nil, err)
	bufio.NewReader(os.Stdin).ReadString('\n')
	return nil
}

type helper struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startHelper(t testing.TB, name, path string) *helper {
	t.Helper()
	h := &helper{cmd: exec.Command(os.Args[0], path)}
	h.cmd.Env = append(os.Environ(), "PASSTHROUGH_HELPER="+name, "GORACE=atexit_sleep_ms=0")
	h.cmd.Stderr = os.Stderr
	var err error
	h.in, err = h.cmd.StdinPipe()
	must(t, err)
	out, err := h.cmd.StdoutPipe()
	must(t, err)
	h.out = bufio.NewScanner(out)
	must(t, h.cmd.Start())
	t.Cleanup(func() { h.cmd.Process.Kill(); h.cmd.Wait() })
	return h
}

func (h *helper) line(t testing.TB) string {
	t.Helper()
	if !h.out.Scan() {
		t.Fatalf("helper ended: %v", h.out.Err())
	}
	return h.out.Text()
}

func (h *helper) finish(t testing.TB) {
	t.Helper()
	must(t, h.in.Close())
	must(t, h.cmd.Wait())
}

func lockFile(t *testing.T) (src, mnt string) {
	dir := t.TempDir()
	mnt, _ = mountPassthrough(t, dir, Options{})
	src, mnt = filepath.Join(dir, "f"), filepath.Join(mnt, "f")
	must(t, os.WriteFile(src, []byte("0123456789012345678901234567890"), 0o644))
	return src, mnt
}

// TestPosixLockOfOneProcess: POSIX locks belong to a process, so they do not conflict
// between its descriptors, and closing any of them ends them all.
func TestPosixLockOfOneProcess(t *testing.T) {
	_, path := lockFile(t)
	f1, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f1.Close()
	f2, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	must(t, unix.FcntlFlock(f1.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 5}))
	must(t, unix.FcntlFlock(f2.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 12, Len: 5}))
	h := startHelper(t, "posixlock", path)
	h.line(t)
	if got := h.line(t); got != "lock false resource temporarily unavailable" {
		t.Fatalf("another process: %s", got)
	}
	h.finish(t)
	f2.Close()
	h = startHelper(t, "posixlock", path)
	h.line(t)
	if got := h.line(t); got != "lock true <nil>" {
		t.Fatalf("after close: %s", got)
	}
	// And it is told who holds it.
	fl := unix.Flock_t{Type: unix.F_WRLCK}
	must(t, unix.FcntlFlock(f1.Fd(), unix.F_GETLK, &fl))
	if fl.Type != unix.F_WRLCK || fl.Start != 10 || fl.Len != 5 || int(fl.Pid) != h.cmd.Process.Pid {
		t.Errorf("F_GETLK %+v, helper is %d", fl, h.cmd.Process.Pid)
	}
	h.finish(t)
}

// TestBlockingLock has a guest process wait for a lock that first a host process and then
// a guest process holds.
func TestBlockingLock(t *testing.T) {
	for _, kind := range []string{"posixlock", "flock"} {
		for _, holder := range []string{"host", "guest"} {
			t.Run(kind+"/"+holder, func(t *testing.T) {
				src, mnt := lockFile(t)
				path := mnt
				if holder == "host" {
					if path = src; kind == "posixlock" {
						t.Log("the host's POSIX lock conflicts with our open-file-description lock")
					}
				}
				first := startHelper(t, kind, path)
				first.line(t)
				if got := first.line(t); got != "lock true <nil>" {
					t.Fatal(got)
				}
				waiter := startHelper(t, map[string]string{"posixlock": "waitposix", "flock": "waitflock"}[kind], mnt)
				waiter.line(t)
				got := make(chan string, 1)
				go func() { waiter.out.Scan(); got <- waiter.out.Text() }()
				// A second try by somebody else is refused as long as the lock is held.
				third := startHelper(t, kind, mnt)
				third.line(t)
				if line := third.line(t); line != "lock false resource temporarily unavailable" {
					t.Fatal(line)
				}
				third.finish(t)
				select {
				case line := <-got:
					t.Fatalf("the waiter did not wait: %s", line)
				default:
				}
				first.finish(t)
				select {
				case line := <-got:
					if line != "lock true <nil>" {
						t.Fatal(line)
					}
				case <-time.After(10 * time.Second):
					t.Fatal("the waiter was not woken")
				}
				waiter.finish(t)
			})
		}
	}
}

// TestInterruptedLock kills a waiter: its request has to end, or the unmount in the cleanup would fail.
func TestInterruptedLock(t *testing.T) {
	_, path := lockFile(t)
	first := startHelper(t, "flock", path)
	first.line(t)
	first.line(t)
	waiter := startHelper(t, "waitflock", path)
	waiter.line(t)
	must(t, waiter.cmd.Process.Kill())
	done := make(chan error, 1)
	go func() { done <- waiter.cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("a killed waiter does not end")
	}
	first.finish(t)
}

// TestReadLockEnds: closing a file that cannot write makes no FLUSH; its read lock ends all the same.
func TestReadLockEnds(t *testing.T) {
	src := testenv.Tmpfs(t)
	mnt, _ := mountPassthrough(t, src, Options{})
	must(t, os.WriteFile(filepath.Join(src, "f"), []byte("x"), 0o644))
	r, err := os.Open(filepath.Join(mnt, "f"))
	must(t, err)
	lock := unix.Flock_t{Type: unix.F_RDLCK}
	must(t, unix.FcntlFlock(r.Fd(), unix.F_SETLK, &lock))
	h, err := os.OpenFile(filepath.Join(src, "f"), os.O_RDWR, 0)
	must(t, err)
	defer h.Close()
	try := func() error {
		lock := unix.Flock_t{Type: unix.F_WRLCK}
		return unix.FcntlFlock(h.Fd(), unix.F_OFD_SETLK, &lock)
	}
	if err := try(); err != unix.EAGAIN {
		t.Fatalf("locked on the host beside a read lock of the guest: %v", err)
	}
	must(t, r.Close())
	within(t, "the lock ends", func() bool { return try() == nil })
}
