package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// childEnv tells the child that it is one: the mode, the parent's mount namespace, and how many files it is given.
const childEnv = "HERALDFS_SANDBOX"

// The child's descriptors: lifeline and ready, then the files.
const (
	lifelineFD = 3
	readyFD    = 4
	firstFile  = 5
)

// Supervise starts this program again, with the same arguments, in namespaces of its own if mode is Namespace, gives it files, and
// waits for its end. ready is called when the child has called Ready. SIGINT, SIGTERM and SIGHUP are
// passed on; stopping is called with the first. It returns the child's exit status; an error means
// that it could not be started, or called Fail (both ErrStart), or was killed.
func Supervise(mode Mode, files []*os.File, ready, stopping func()) (status int, err error) {
	ns, err := mountNamespace()
	if err != nil {
		return 0, err
	}
	lifeline, hold, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer hold.Close()
	hear, say, err := os.Pipe()
	if err != nil {
		lifeline.Close()
		return 0, err
	}
	defer hear.Close()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = append([]*os.File{lifeline, say}, files...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s,%s,%d", childEnv, mode, ns, len(files)))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if mode == Namespace {
		addNamespaces(cmd.SysProcAttr)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	// Pdeathsig is about the thread that starts the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Start()
	lifeline.Close()
	say.Close()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrStart, err)
	}
	told := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(hear, maxReason))
		told <- string(b)
	}()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	reason := ""
	for stop := stopping; ; {
		select {
		case word := <-told:
			if told = nil; word == isReady {
				ready()
			}
			reason = word
		case s := <-signals:
			if stop != nil {
				stop()
				stop = nil
			}
			// It may have ended meanwhile.
			_ = cmd.Process.Signal(s)
		case err := <-ended:
			if told != nil {
				reason = <-told // its end of the pipe is closed
			}
			if reason != "" && reason != isReady {
				return 0, fmt.Errorf("%w: %s", ErrStart, reason)
			}
			return exitStatus(err)
		}
	}
}

// What a child says to its parent: isReady, or why it fails.
const (
	isReady   = "\x01"
	maxReason = 4096
)

// ErrStart says that the child could not be started, or not confined: the kernel, or the container that we are in, refuses
// the namespaces, or something that is done in them.
var ErrStart = errors.New("cannot confine the process")

func exitStatus(err error) (int, error) {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, err
	}
	if code := exit.ExitCode(); code >= 0 {
		return code, nil
	}
	return 0, fmt.Errorf("the confined process: %w", err)
}

func addNamespaces(attr *syscall.SysProcAttr) {
	attr.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWPID
	if admin, err := hasCapability(unix.CAP_SYS_ADMIN); err == nil && admin {
		return
	}
	attr.Cloneflags |= unix.CLONE_NEWUSER
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	// A user other than 0 loses its capabilities when the program starts, but for these.
	attr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_SETPCAP}
}

func mountNamespace() (string, error) {
	s, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return "", fmt.Errorf("mount namespace: %w", err)
	}
	return s, nil
}

// Child is this process as one that Supervise has started.
type Child struct {
	// Mode is what Supervise was told.
	Mode Mode
	// Files are what Supervise was given, in the same order, and the caller's to close.
	Files []*os.File
	ready *os.File
}

// ownNamespaces reports whether this process is the first of namespaces that Supervise has made: what Enter does
// would change the host otherwise.
func ownNamespaces(outer string) error {
	if ns, err := mountNamespace(); err != nil || ns == outer || os.Getpid() != 1 {
		return errors.Join(err, errors.New("not in namespaces of our own"))
	}
	return nil
}

// Join takes what the parent gives to a child, and makes this process end when the parent does. It returns nil in
// a process that Supervise did not start.
func Join() (*Child, error) {
	words := strings.Split(os.Getenv(childEnv), ",")
	if len(words) != 3 {
		return nil, nil
	}
	mode, outer := Mode(words[0]), words[1]
	n, err := strconv.Atoi(words[2])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", childEnv, err)
	}
	if mode == Namespace {
		if err := ownNamespaces(outer); err != nil {
			return nil, err
		}
	}
	c := &Child{Mode: mode, ready: os.NewFile(readyFD, "ready")}
	for fd := range firstFile + n {
		if fd > 2 {
			unix.CloseOnExec(fd)
		}
		if fd >= firstFile {
			c.Files = append(c.Files, os.NewFile(uintptr(fd), "inherited"))
		}
	}
	lifeline := os.NewFile(lifelineFD, "lifeline")
	go func() {
		// Nothing is written to it.
		_, _ = lifeline.Read(make([]byte, 1))
		os.Exit(1)
	}()
	return c, nil
}

// Ready tells the parent. It does nothing in a nil Child, and the second time.
func (c *Child) Ready() error { return c.say(isReady) }

// Fail tells the parent, instead of Ready, why this process will end.
func (c *Child) Fail(reason error) error { return c.say(reason.Error()) }

func (c *Child) say(word string) error {
	if c == nil || c.ready == nil {
		return nil
	}
	_, err := c.ready.WriteString(word)
	err = errors.Join(err, c.ready.Close())
	c.ready = nil
	return err
}
