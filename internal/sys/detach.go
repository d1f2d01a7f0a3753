package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrShared says that a thread could not get descriptors of its own: some containers
// forbid it.
var ErrShared = errors.New("the thread shares the descriptors of the process")

// Detach gives the calling thread, which must be locked and must stay so until it ends, a
// descriptor table of its own with only the standard descriptors, keep, and those that the
// Go runtime uses on any thread (its poller's), and eventfds.
//
// A thread that waits for answers of its own process cannot die, if the process is
// killed meanwhile, before the FUSE device is closed; with a shared table it would itself
// keep the device open, and wait for ever.
//
// It must not be the process's first thread: that one has no end before the process's, and
// /proc/self/fd is its table (see OwnThread). After ErrShared nothing has changed.
func Detach(keep ...int) error {
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return fmt.Errorf("%w: unshare: %w", ErrShared, err)
	}
	wanted := map[int]bool{0: true, 1: true, 2: true}
	for _, fd := range keep {
		wanted[fd] = true
	}
	const dir = "/proc/thread-self/fd"
	d, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("list descriptors: %w", err)
	}
	defer unix.Close(d)
	wanted[d] = true
	// Not os.ReadDir: its file would belong to the runtime's poller.
	var names []string
	buf := make([]byte, 1<<14)
	for {
		n, err := unix.Getdents(d, buf)
		if err != nil {
			return fmt.Errorf("list descriptors: %w", err)
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil || wanted[fd] {
			continue
		}
		target, err := os.Readlink(dir + "/" + name)
		if err == nil && (strings.Contains(target, "[eventpoll]") || strings.Contains(target, "[eventfd]")) {
			continue
		}
		unix.Close(fd)
	}
	return nil
}

// OwnThread runs do on a thread of its own, which ends with it, and never on the
// process's first thread.
func OwnThread(do func() error) error {
	ended := make(chan error, 1)
	go func() {
		// Never unlocked: a thread that do has changed is of no other use, and the
		// runtime lets it end with the goroutine.
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			ended <- do()
			return
		}
		// Kept busy here, the first thread is not the one that runs the next goroutine.
		defer runtime.UnlockOSThread()
		ended <- OwnThread(do)
	}()
	return <-ended
}
