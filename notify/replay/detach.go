package replay

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

var errShared = errors.New("the replaying thread shares the descriptors of the process")

// detach gives the calling thread, which must be locked and must stay so until it ends, a
// descriptor table of its own with only the standard descriptors, keep, and those that the
// Go runtime uses on any thread (its poller's), and eventfds.
//
// The replayer's thread waits for answers of its own process. If the process is killed
// meanwhile, the thread cannot die before the FUSE device is closed; with a shared table it
// would itself keep the device open, and wait for ever.
//
// errShared says that nothing was done: some containers forbid it.
func detach(keep ...int) error {
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return fmt.Errorf("%w: unshare: %w", errShared, err)
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
