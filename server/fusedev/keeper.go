package fusedev

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/heraldfs/heraldfs/internal/sys"
	"golang.org/x/sys/unix"
)

// keeperName is the first word of a keeper's command line; the second is the mount point, and the third, if there
// is one, the unique id of the mount that is to be taken off.
const keeperName = "heraldfs-keeper"

// controlFD is where a keeper has the connection's abort file; its standard input is the lifeline.
const controlFD = 3

// keeper is a process that aborts the connection when the one that serves it was killed.
//
// A thread that drops a file's pages waits for those that are being read, and so for the
// answers of its own process. Killed then, it does not end: the notification that it
// writes holds the device, and the kernel aborts no connection whose device is held. Whoever
// uses the mount would hang with it. From outside the connection can be aborted, and then
// everything ends.
type keeper struct {
	cmd   *exec.Cmd
	stop  int // eventfd
	ended chan struct{}
}

// RunKeeper is the whole program if argv is that of a keeper: then it
// returns true, with the exit status. A program that sets Options.Keeper calls it first of all.
func RunKeeper(argv []string) (status int, is bool) {
	if len(argv) == 0 || filepath.Base(argv[0]) != keeperName {
		return 0, false
	}
	// What ends the daemon in good order must not end us before it.
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE)
	var word [1]byte
	// The daemon says a word before it hangs up; if it is killed it does not.
	if _, err := io.ReadFull(os.Stdin, word[:]); err == nil {
		return 0, true
	}
	if _, err := unix.Write(controlFD, []byte("1")); err != nil {
		fmt.Fprintf(os.Stderr, "%s: abort the connection: %v\n", keeperName, err)
		return 1, true
	}
	if len(argv) > 2 {
		if err := takeOff(argv[1], argv[2]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: unmount: %v\n", keeperName, err)
			return 1, true
		}
	}
	return 0, true
}

// takeOff unmounts point if the mount there is still the one with this id.
func takeOff(point, unique string) error {
	id, err := identify(unix.AT_FDCWD, point, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return err
	}
	if strconv.FormatUint(id.unique, 10) != unique {
		return nil // unmounted already, or something else was mounted
	}
	return unmountPath(point, true)
}

// startKeeper starts a copy of this program as keeper.
func (c *Conn) startKeeper() (*keeper, error) {
	control, err := openControl(strconv.FormatUint(uint64(c.id.minor), 10) + "/abort")
	if err != nil {
		return nil, err
	}
	abort := os.NewFile(uintptr(control), "abort")
	defer abort.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	defer r.Close()
	defer w.Close()
	k := &keeper{ended: make(chan struct{})}
	if k.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	held := make(chan error)
	go func() {
		defer close(k.ended)
		// A failure is told before hold returns.
		_ = sys.OwnThread(func() error { return k.hold(int(w.Fd()), held) })
	}()
	if err := <-held; err != nil {
		<-k.ended
		unix.Close(k.stop)
		return nil, err
	}
	args := []string{keeperName, c.point}
	if c.opts.AutoUnmount {
		if c.id.unique == 0 {
			c.log.Warn("the mount will not be taken off if this process is killed: the kernel gives no unique mount ids (Linux 6.8)")
		} else {
			args = append(args, strconv.FormatUint(c.id.unique, 10))
		}
	}
	k.cmd = &exec.Cmd{
		Path: "/proc/self/exe", Args: args, Dir: "/",
		Stdin: r, ExtraFiles: []*os.File{abort},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := k.cmd.Start(); err != nil {
		k.cmd = nil
		k.end()
		return nil, fmt.Errorf("start %s: %w", keeperName, err)
	}
	return k, nil
}

// hold keeps the lifeline w in the descriptor table of this thread alone: a thread that cannot
// die has the process's table, and would keep the lifeline from ending with the process.
func (k *keeper) hold(w int, held chan<- error) error {
	if err := sys.Detach(w, k.stop); err != nil {
		held <- err
		return err
	}
	// The first thread's table would outlive us, but this is never the first thread.
	defer unix.Close(w)
	held <- nil
	// Not by a channel: the thread sleeps in the kernel, and a kill ends it at once.
	var buf [8]byte
	for {
		if _, err := unix.Read(k.stop, buf[:]); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	_, err := unix.Write(w, []byte{1})
	return err
}

// end dismisses the keeper.
func (k *keeper) end() error {
	one := [8]byte{1}
	if _, err := unix.Write(k.stop, one[:]); err != nil {
		return fmt.Errorf("dismiss %s: %w", keeperName, err)
	}
	<-k.ended
	unix.Close(k.stop)
	if k.cmd == nil {
		return nil
	}
	if err := k.cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w", keeperName, err)
	}
	return nil
}
