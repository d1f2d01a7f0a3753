package fusedev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func itoa(n uint32) string { return fmt.Sprint(n) }

// blockOn returns a hook that holds requests of op, tells of each on entered, and
// lets go when release is closed or the request is cancelled.
func blockOn(op string) (hook func(string, uint64, <-chan struct{}) fuse.Status, entered chan uint64, release chan struct{}) {
	entered, release = make(chan uint64, 256), make(chan struct{})
	return func(got string, id uint64, cancel <-chan struct{}) fuse.Status {
		if got == op {
			entered <- id
			select {
			case <-release:
			case <-cancel:
				return fuse.EINTR
			}
		}
		return fuse.OK
	}, entered, release
}

func TestSlowHandler(t *testing.T) {
	m := newMemFS()
	conn := serve(t, m, Options{})
	if _, err := os.Stat(filepath.Join(conn.Mountpoint(), "dir")); err != nil {
		t.Fatal(err)
	}
	hook, entered, release := blockOn("lookup")
	m.setHook(hook)
	const slow = 5
	results := make(chan error, slow)
	for i := range slow {
		go func() {
			_, err := os.Stat(filepath.Join(conn.Mountpoint(), fmt.Sprint("none", i)))
			results <- err
		}()
	}
	for range slow {
		await(t, "all slow lookups have begun", entered)
	}
	// The attributes of dir are never cached: this is a request.
	before := m.count("getattr")
	within(t, "stat while others are slow", func() error {
		_, err := os.Stat(filepath.Join(conn.Mountpoint(), "dir"))
		return err
	})
	if m.count("getattr") == before {
		t.Error("no request was made")
	}
	if n := conn.Relieved(); n < slow && !conn.OverIOURing() {
		t.Errorf("the reader was relieved %d times", n)
	}
	close(release)
	for range slow {
		if err := await(t, "a slow lookup ends", results); !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
}

// TestInitAlone has a watchdog that never waits. The race detector sees to it that what INIT settles
// is there before a second reader is.
func TestInitAlone(t *testing.T) {
	for range 20 {
		conn := serve(t, newMemFS(), Options{SlowAfter: 1})
		if _, err := os.Stat(filepath.Join(conn.Mountpoint(), "dir")); err != nil {
			t.Fatal(err)
		}
		within(t, "close", conn.Close)
	}
}

// TestWorkersFull has more blocking requests than workers: the rest waits in the
// kernel and is carried out when there is room.
func TestWorkersFull(t *testing.T) {
	m := newMemFS()
	m.content = make([]byte, 1<<20)
	conn := serve(t, m, Options{MaxWorkers: 2, IOURing: IOURingOff})
	fd, err := unix.Open(filepath.Join(conn.Mountpoint(), "file"), unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	hook, entered, release := blockOn("read")
	m.setHook(hook)
	const calls = 6
	results := make(chan int, calls)
	for range calls {
		go func() {
			n, _ := unix.Pread(fd, make([]byte, 2*inlineData), 0)
			results <- n
		}()
	}
	for range 3 { // two workers and the reader
		await(t, "a read begins", entered)
	}
	close(release)
	for range calls {
		if n := await(t, "a read ends", results); n != 2*inlineData {
			t.Errorf("read %d bytes", n)
		}
	}
	if n := m.count("read"); n != calls {
		t.Errorf("%d requests", n)
	}
}

func TestLockWait(t *testing.T) {
	m := newMemFS()
	conn := serve(t, m, Options{Fuse: fuse.MountOptions{EnableLocks: true}, MaxLockWaiters: 2})
	path := filepath.Join(conn.Mountpoint(), "file")
	entered, cancelled := make(chan uint64, 8), make(chan struct{}, 8)
	m.setHook(func(op string, id uint64, cancel <-chan struct{}) fuse.Status {
		if op != "setlkw" {
			return fuse.OK
		}
		entered <- id
		<-cancel
		cancelled <- struct{}{}
		return fuse.EINTR
	})
	var helpers []interface{ Wait() error }
	var pids []int
	for range 2 {
		cmd := helperCommand(t, "lock", nil, nil, path)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		helpers = append(helpers, cmd)
		pids = append(pids, cmd.Process.Pid)
		await(t, "SETLKW arrives", entered)
	}
	within(t, "stat while locks wait", func() error {
		_, err := os.Stat(filepath.Join(conn.Mountpoint(), "dir"))
		return err
	})
	// A third one is one too many.
	third, said := startHelper(t, "lock", nil, nil, path)
	_ = third.Wait()
	if want := "lock: no locks available"; said != want {
		t.Errorf("third waiter: %q, want %q", said, want)
	}
	for i, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		await(t, "INTERRUPT reaches the handler", cancelled)
		_ = helpers[i].Wait()
	}
}

// TestAbortCancelsHandlers ends the mount under a waiting lock.
func TestAbortCancelsHandlers(t *testing.T) {
	m := newMemFS()
	conn := serve(t, m, Options{Fuse: fuse.MountOptions{EnableLocks: true}})
	entered := make(chan struct{}, 1)
	m.setHook(func(op string, _ uint64, cancel <-chan struct{}) fuse.Status {
		if op == "setlkw" {
			entered <- struct{}{}
			<-cancel
			return fuse.EINTR
		}
		return fuse.OK
	})
	cmd := helperCommand(t, "lock", nil, nil, filepath.Join(conn.Mountpoint(), "file"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "SETLKW arrives", entered)
	within(t, "close", conn.Close)
	_ = cmd.Wait()
}

func TestConcurrentRequests(t *testing.T) {
	m := newMemFS()
	m.content = make([]byte, 1<<20)
	conn := serve(t, m, Options{MaxWorkers: 4})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 200 {
				var st unix.Stat_t
				if err := unix.Stat(filepath.Join(conn.Mountpoint(), "dir"), &st); err != nil {
					t.Error(err)
				}
				_, err := os.Lstat(filepath.Join(conn.Mountpoint(), fmt.Sprintf("none-%d-%d", i, j)))
				if !errors.Is(err, os.ErrNotExist) {
					t.Error(err)
				}
				if j%50 == 0 {
					if err := conn.Notify().InvalInode(memFile, 0, 0); err != nil && j > 0 && i == 0 {
						t.Log(err)
					}
					b, err := os.ReadFile(filepath.Join(conn.Mountpoint(), "file"))
					if err != nil || len(b) != 1<<20 {
						t.Error(len(b), err)
					}
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	await(t, "all requests", done)
	runtime.KeepAlive(conn)
}
