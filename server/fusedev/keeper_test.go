package fusedev

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// helperWedge serves a file whose READ is never answered and then drops its pages, which
// waits for that READ.
func helperWedge(point string) int {
	fs := newMemFS()
	reading, never := make(chan struct{}), make(chan struct{})
	fs.setHook(func(op string, _ uint64, _ <-chan struct{}) fuse.Status {
		if op == "read" {
			close(reading)
			<-never
		}
		return 0
	})
	conn, err := Mount(point, fs, Options{
		AllowOther: true, Keeper: os.Getenv("FUSEDEV_KEEPER") != "",
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	go conn.Serve(context.Background())
	if err := conn.WaitReady(context.Background()); err != nil {
		fmt.Println("error:", err)
		return 1
	}
	fmt.Println("ready", conn.Device())
	<-reading
	err = conn.Notify().InvalInode(memFile, 0, -1)
	fmt.Println("error: the pages are gone though they are being read:", err)
	return 1
}

// TestKillInNotification kills a daemon whose notification waits for an answer of its own.
func TestKillInNotification(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	point := t.TempDir()
	cmd, said := startHelper(t, "wedge", nil, []string{"FUSEDEV_KEEPER=yes"}, point)
	var device uint32
	if _, err := fmt.Sscanf(said, "ready %d", &device); err != nil {
		t.Fatal(said)
	}
	t.Cleanup(func() {
		// Should it hang, nobody else can end it.
		_ = Abort(device)
		unix.Unmount(point, unix.MNT_DETACH)
	})
	read := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(filepath.Join(point, "file"))
		read <- err
	}()
	awaitSleeper(t, cmd.Process.Pid)
	keepers := keepersOf(t, point)
	if len(keepers) != 1 {
		t.Fatalf("%d keepers", len(keepers))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	await(t, "the end of the killed process", ended)
	if err := await(t, "the end of the read", read); err == nil {
		t.Error("a file was read whose contents nobody gave")
	}
	if err := unix.Statfs(point, new(unix.Statfs_t)); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("statfs of the dead mount: %v", err)
	}
	for deadline := time.Now().Add(patience); len(keepersOf(t, point)) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the keeper lives on")
		}
	}
	if err := unix.Unmount(point, 0); err != nil {
		t.Errorf("unmount: %v", err)
	}
}

// awaitSleeper waits until a thread of a process is in an uninterruptible sleep.
func awaitSleeper(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, stat := range stats {
			text, _ := os.ReadFile(stat)
			if _, rest, ok := strings.Cut(string(text), ") "); ok && strings.HasPrefix(rest, "D ") {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("the notification does not wait")
		}
	}
}

// awaitIgnored waits until a process ignores SIGTERM.
func awaitIgnored(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		_, rest, _ := strings.Cut(string(text), "SigIgn:")
		word, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
		if set, err := strconv.ParseUint(word, 16, 64); err == nil && set&(1<<(unix.SIGTERM-1)) != 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the keeper does not ignore SIGTERM")
		}
	}
}

func keepersOf(t *testing.T, point string) (pids []string) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		if text, _ := os.ReadFile(line); string(text) == keeperName+"\x00"+point+"\x00" {
			pids = append(pids, filepath.Base(filepath.Dir(line)))
		}
	}
	return pids
}

// TestKeeperDismissed has a keeper go with a mount that ends in good order, and not before.
func TestKeeperDismissed(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	for _, name := range []string{"served", "not served"} {
		t.Run(name, func(t *testing.T) {
			conn, err := Mount(t.TempDir(), newMemFS(), Options{Keeper: true})
			if err != nil {
				t.Fatal(err)
			}
			if n := len(keepersOf(t, conn.Mountpoint())); n != 1 {
				t.Errorf("%d keepers", n)
			}
			if name == "served" {
				start(t, conn)
				// As by the end of a session or a service.
				for _, pid := range keepersOf(t, conn.Mountpoint()) {
					n, _ := strconv.Atoi(pid)
					awaitIgnored(t, n)
					for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP} {
						if err := unix.Kill(n, sig); err != nil {
							t.Error(err)
						}
					}
				}
				if _, err := os.ReadFile(filepath.Join(conn.Mountpoint(), "file")); err != nil {
					t.Error(err)
				}
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			if n := len(keepersOf(t, conn.Mountpoint())); n != 0 {
				t.Errorf("%d keepers are left", n)
			}
		})
	}
}
