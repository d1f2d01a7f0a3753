package main

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// hangup returns a channel that is closed when the reader of out, if out is a pipe or socket, has gone: a
// process that has nothing to print would not notice otherwise. stop ends the watch and waits.
func hangup(out io.Writer) (gone <-chan struct{}, stop func()) {
	c := make(chan struct{})
	file, ok := out.(*os.File)
	if !ok {
		return c, func() {}
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return c, func() {} // the next write notices
	}
	done := make(chan struct{})
	fd := int32(file.Fd())
	go func() {
		defer close(done)
		// No events asked for: the kernel reports POLLERR and POLLHUP anyway.
		fds := []unix.PollFd{{Fd: fd}, {Fd: int32(p[0]), Events: unix.POLLIN}}
		for {
			_, err := unix.Poll(fds, -1)
			if err == unix.EINTR {
				continue
			}
			if err == nil && fds[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0 {
				close(c)
			}
			return
		}
	}()
	return c, func() {
		unix.Close(p[1])
		<-done
		unix.Close(p[0])
	}
}
