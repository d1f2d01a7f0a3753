package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait for a process to start or to end.
const patience = 20 * time.Second

// bench is a run: a tmpfs, the programs under test, and what is to be undone.
type bench struct {
	ctx      context.Context
	progress io.Writer
	report   report
	rounds   int
	samples  int

	dir      string // the tmpfs
	points   int
	program  string
	loopback string
	quick    bool
	jobs     *regexp.Regexp // of the section files
	bars     []group        // for the plot
	columns  []string       // whose bars these are
	came     transports     // of the section
	undo     []func() error
}

func (b *bench) say(format string, args ...any) { fmt.Fprintf(b.progress, format+"\n", args...) }

func (b *bench) later(f func() error) { b.undo = append(b.undo, f) }

// unwind undoes the latest first, down to depth.
func (b *bench) unwind(depth int) error {
	var errs []error
	for len(b.undo) > depth {
		f := b.undo[len(b.undo)-1]
		b.undo = b.undo[:len(b.undo)-1]
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

func (b *bench) prepare() error {
	dir, err := os.MkdirTemp("", "heraldfs-bench-")
	if err != nil {
		return err
	}
	b.later(func() error { return os.Remove(dir) })
	if err := unix.Mount("bench", dir, "tmpfs", 0, "mode=755,size=3g,nr_inodes=2m"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s (the bench needs root): %w", dir, err)
	}
	b.later(func() error { return detach(dir) })
	b.dir = dir
	if b.program == "" {
		b.program = filepath.Join(dir, "heraldfs")
		if err := b.build(b.program, "cmd/heraldfs"); err != nil {
			return err
		}
	}
	b.loopback = filepath.Join(dir, "loopback")
	if err := b.build(b.loopback, "internal/bench/loopback"); err != nil {
		return err
	}
	return b.offerIOURing(ioURingSwitch)
}

func (b *bench) build(out, pkg string) error {
	b.say("building %s", pkg)
	text, err := exec.CommandContext(b.ctx, "go", "build", "-o", out, "github.com/heraldfs/heraldfs/"+pkg).CombinedOutput()
	if err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, text)
	}
	return nil
}

// source makes a directory for a section and removes it with the section.
func (b *bench) source(name string) (string, error) {
	dir := filepath.Join(b.dir, name)
	b.later(func() error { return os.RemoveAll(dir) })
	return dir, os.Mkdir(dir, 0o755)
}

func detach(point string) error {
	err := unix.Unmount(point, unix.MNT_DETACH)
	if err == unix.EINVAL { // not mounted any more
		return nil
	}
	return err
}

// process is something that runs beside the bench.
type process struct {
	cmd    *exec.Cmd
	output bytes.Buffer
	ready  time.Duration // from exec to ready
	lax    bool          // it is no error if it does not end with 0
}

// stop asks for an orderly end and waits for it.
func (p *process) stop(sig syscall.Signal) error {
	p.cmd.Process.Signal(sig)
	kill := time.AfterFunc(patience, func() { p.cmd.Process.Kill() })
	defer kill.Stop()
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() && ws.Signal() == sig {
			return nil
		}
	}
	if err != nil && !(p.lax && exit != nil) {
		return fmt.Errorf("%s: %w: %s", filepath.Base(p.cmd.Path), err, bytes.TrimSpace(p.output.Bytes()))
	}
	return nil
}

// start runs a program until it writes a line that contains word to the file that hook connects
// to its writing end.
func (b *bench) start(word string, hook func(*exec.Cmd, *os.File), argv ...string) (*process, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(argv[0], argv[1:]...)}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stderr = &p.output
	hook(p.cmd, w)
	began := time.Now()
	err = p.cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		return nil, err
	}
	stopWaiting := context.AfterFunc(b.ctx, func() { r.SetReadDeadline(time.Now()) })
	defer stopWaiting()
	r.SetReadDeadline(time.Now().Add(3 * patience))
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if strings.Contains(line, word) {
			p.ready = time.Since(began)
			break
		}
		if err != nil {
			r.Close()
			p.cmd.Process.Kill()
			p.cmd.Wait()
			return nil, fmt.Errorf("%s did not get ready: %w: %s%s", filepath.Base(argv[0]), err, line, p.output.Bytes())
		}
	}
	// What else it says must not fill the pipe.
	r.SetReadDeadline(time.Time{})
	go func() {
		io.Copy(io.Discard, lines)
		r.Close()
	}()
	return p, nil
}

func onStdout(c *exec.Cmd, w *os.File) { c.Stdout = w }
func onStderr(c *exec.Cmd, w *os.File) { c.Stderr = w }

func onReadyFD(c *exec.Cmd, w *os.File) {
	c.ExtraFiles = []*os.File{w}
	c.Env = append(os.Environ(), "HERALDFS_READY_FD=3")
}

// mount is a file system under test. The native tree is one without a process.
type mount struct {
	name  string
	point string
	proc  *process
}

func (m *mount) close() error {
	if m.proc == nil {
		return nil
	}
	err := m.proc.stop(unix.SIGTERM)
	return errors.Join(err, detach(m.point), os.Remove(m.point))
}

func (b *bench) point() (string, error) {
	b.points++
	p := filepath.Join(b.dir, "mnt"+strconv.Itoa(b.points))
	return p, os.Mkdir(p, 0o755)
}

func (b *bench) mountWith(name string, start func(point string) (*process, error)) (*mount, error) {
	point, err := b.point()
	if err != nil {
		return nil, err
	}
	p, err := start(point)
	if err != nil {
		return nil, errors.Join(err, detach(point), os.Remove(point))
	}
	return &mount{name: name, point: point, proc: p}, nil
}

// sync returns when every host change made before is visible in the mount and
// delivered, as `heraldfs sync` does.
func (m *mount) sync() error {
	var buf [16]byte
	for {
		_, err := unix.Getxattr(m.point, "user.heraldfs.sync", buf[:])
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
