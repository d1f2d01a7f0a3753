package fusedev

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"golang.org/x/sys/unix"
)

// patience bounds every wait; nothing waits that long unless it is broken.
const patience = 20 * time.Second

// helperEnv names what a copy of the test program has to be.
const helperEnv = "FUSEDEV_HELPER"

func TestMain(m *testing.M) {
	if status, is := RunKeeper(os.Args); is {
		os.Exit(status)
	}
	switch os.Getenv(helperEnv) {
	case "":
		testenv.LeakMain(m)
	case "serve":
		os.Exit(helperServe(os.Args[1]))
	case "wedge":
		os.Exit(helperWedge(os.Args[1]))
	case "lock":
		os.Exit(helperLock(os.Args[1]))
	}
	os.Exit(2)
}

// helperServe mounts, says "ready", and unmounts on SIGTERM.
func helperServe(point string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	conn, err := Mount(point, newMemFS(), Options{
		AllowOther: os.Getenv("FUSEDEV_ALLOW_OTHER") != "",
		Logger:     slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	if _, err := conn.PrivateRoot(); !conn.direct && err == nil {
		fmt.Println("error: a private root without privileges")
		return 1
	}
	done := make(chan error, 1)
	go func() { done <- conn.Serve(ctx) }()
	if err := conn.WaitReady(context.Background()); err != nil {
		fmt.Println("error:", err)
		return 1
	}
	fmt.Println("ready")
	if err := <-done; err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return 0
}

// helperLock waits for a write lock on a file.
func helperLock(path string) int {
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	err = unix.FcntlFlock(uintptr(fd), unix.F_SETLKW, &lock)
	fmt.Println("lock:", err)
	return 0
}

// startHelper runs a copy of this program and returns when it has said a line.
func startHelper(t *testing.T, kind string, attr *syscall.SysProcAttr, env []string, args ...string) (*exec.Cmd, string) {
	t.Helper()
	cmd := helperCommand(t, kind, attr, env, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make(chan string, 1)
	go func() {
		s, _ := bufio.NewReader(out).ReadString('\n')
		line <- strings.TrimSpace(s)
	}()
	select {
	case s := <-line:
		return cmd, s
	case <-time.After(patience):
		_ = cmd.Process.Kill()
		t.Fatal("the helper process says nothing")
	}
	return nil, ""
}

func helperCommand(t *testing.T, kind string, attr *syscall.SysProcAttr, env []string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(append(os.Environ(), helperEnv+"="+kind), env...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = attr
	cmd.Dir = "/"
	return cmd
}

// serve mounts on a fresh directory, serves, and ends it all with the test.
func serve(t testing.TB, fs *memFS, opts Options) *Conn {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.FUSE)
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	}
	conn, err := Mount(filepath.Join(t.TempDir()), fs, opts)
	if err != nil {
		t.Fatal(err)
	}
	start(t, conn)
	return conn
}

// start serves conn until the test ends and waits until it is ready.
func start(t testing.TB, conn *Conn) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- conn.Serve(context.Background()); close(done) }()
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := conn.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return done
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// await fails the test if c does not yield in time.
func await[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("timed out: %s", what)
	}
	return v
}

// within runs f and fails the test if it does not return in time.
func within(t testing.TB, what string, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	if err := await(t, what, done); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}
