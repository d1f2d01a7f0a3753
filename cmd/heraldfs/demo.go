//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newDemoCommand() *cobra.Command {
	var keepPace time.Duration
	cmd := &cobra.Command{
		Use:   "demo [flags]",
		Short: "Show it: the same changes heard natively and through a mount, side by side",
		Long: `Make a temporary host directory and mount it. Start an inotify watcher on the directory and another
one in the mount, change files on the host side, and print what each heard, with the delay of
each event. Everything is removed afterwards. Exits 0 if both heard the same, 1 if not.

Needs root and /dev/fuse, and nothing else.`,
		Example: `  sudo heraldfs demo`,
		Args:    exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			return demo(ctx, cmd.OutOrStdout(), keepPace)
		},
	}
	cmd.Flags().DurationVar(&keepPace, "pace", 20*time.Millisecond, "pause between two changes, so that delays are those of an idle system")
	return cmd
}

// missing says what this machine lacks for the demo.
func missing() error {
	var errs []error
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("it needs root: run it with sudo"))
	}
	switch f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); {
	case err == nil:
		f.Close()
	case os.IsNotExist(err):
		errs = append(errs, errors.New("/dev/fuse is missing: load the kernel module (modprobe fuse), or give the container --device /dev/fuse"))
	case os.Geteuid() == 0:
		errs = append(errs, fmt.Errorf("/dev/fuse cannot be opened: %w; in a container, add --device /dev/fuse --cap-add SYS_ADMIN", err))
	}
	return errors.Join(errs...)
}

// act is one line of the story.
type act struct {
	what string
	do   func(host string) error
}

func story() []act {
	at := func(dir, name string) string { return filepath.Join(dir, name) }
	write := func(name, text string, flags int) func(string) error {
		return func(h string) error {
			f, err := os.OpenFile(at(h, name), os.O_WRONLY|flags, 0o644)
			if err != nil {
				return err
			}
			_, err = f.WriteString(text)
			return errors.Join(err, f.Close())
		}
	}
	move := func(from, to string) func(string) error {
		return func(h string) error { return os.Rename(at(h, from), at(h, to)) }
	}
	return []act{
		{"write a new file report.txt", write("report.txt", "hello, guest\n", os.O_CREATE)},
		{"rewrite it with the same size", write("report.txt", "HELLO, GUEST\n", 0)},
		{"chmod 600 report.txt", func(h string) error { return os.Chmod(at(h, "report.txt"), 0o600) }},
		{"rename it to final.txt", move("report.txt", "final.txt")},
		{"move it into archive/", move("final.txt", "archive/final.txt")},
		{"make a hard link to it", func(h string) error { return os.Link(at(h, "archive/final.txt"), at(h, "link.txt")) }},
		{"make a symbolic link", func(h string) error { return os.Symlink("link.txt", at(h, "soft")) }},
		{"make a directory", func(h string) error { return os.Mkdir(at(h, "newdir"), 0o755) }},
		{"rename the watched directory", move("archive", "old-archive")},
		{"exchange link.txt and soft", func(h string) error {
			return unix.Renameat2(unix.AT_FDCWD, at(h, "link.txt"), unix.AT_FDCWD, at(h, "soft"), unix.RENAME_EXCHANGE)
		}},
		{"delete the file", func(h string) error { return os.Remove(at(h, "old-archive/final.txt")) }},
		{"remove the watched directory", func(h string) error { return os.Remove(at(h, "old-archive")) }},
	}
}

func demo(ctx context.Context, out io.Writer, pace time.Duration) (err error) {
	if err := missing(); err != nil {
		return fmt.Errorf("the demo cannot run here: %w", err)
	}
	top, err := os.MkdirTemp("", "heraldfs-demo-")
	if err != nil {
		return err
	}
	host, mnt := filepath.Join(top, "host"), filepath.Join(top, "guest")
	cleanup := []func() error{func() error { return removeDemo(top, host, mnt) }}
	defer func() {
		for _, f := range slices.Backward(cleanup) {
			err = errors.Join(err, f())
		}
	}()
	for _, dir := range []string{filepath.Join(host, "archive"), mnt} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	stop, err := startMount(ctx, host, mnt)
	if err != nil {
		return err
	}
	cleanup = append(cleanup, stop)

	native, err := newEar(host, "archive")
	if err != nil {
		return err
	}
	guest, err := newEar(mnt, "archive")
	if err != nil {
		native.close()
		return err
	}
	cleanup = append(cleanup, func() error { native.close(); guest.close(); return nil })
	fmt.Fprintf(out, "host directory  %s\nguest mount     %s  (fuse.heraldfs)\n\n", host, mnt)

	for _, a := range story() {
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		from, gfrom := native.len(), guest.len()
		if err := a.do(host); err != nil {
			return fmt.Errorf("%s: %w", a.what, err)
		}
		waitEqual(ctx, native, guest, pace)
		fmt.Fprintf(out, "host: %s\n", a.what)
		printBeside(out, native.since(from), guest.since(gfrom))
	}
	// The last word, so that nothing is still on its way.
	if err := os.Mkdir(filepath.Join(host, fence), 0o700); err != nil {
		return err
	}
	if err := errors.Join(native.waitFor(ctx, fence), guest.waitFor(ctx, fence)); err != nil {
		return err
	}
	return verdict(out, native.since(0), guest.since(0))
}

// verdict compares the two streams and sums up.
func verdict(out io.Writer, native, guest []heard) error {
	same := len(native) == len(guest)
	var delays []time.Duration
	for i := range native {
		if i >= len(guest) || native[i].text != guest[i].text {
			same = false
			break
		}
		delays = append(delays, max(guest[i].at.Sub(native[i].at), 0))
	}
	if !same {
		return fmt.Errorf("the streams differ: %d events natively, %d in the guest", len(native), len(guest))
	}
	slices.Sort(delays)
	fmt.Fprintf(out, "\nEqual: %d events, same order, names, ISDIR and cookie pairs. Median delay %s.\n",
		len(native), delays[len(delays)/2].Round(time.Microsecond))
	return nil
}

func printBeside(out io.Writer, native, guest []heard) {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for i := range max(len(native), len(guest)) {
		var n, g, d string
		if i < len(native) {
			n = native[i].text
		}
		if i < len(guest) {
			g = guest[i].text
		}
		if n != "" && g != "" {
			d = "+" + max(guest[i].at.Sub(native[i].at), 0).Round(time.Microsecond).String()
		}
		mark := " "
		if n != g {
			mark = "!"
		}
		fmt.Fprintf(w, "  %s %-40s\t%-40s\t%s\n", mark, n, g, d)
	}
	w.Flush()
}

// startMount runs `heraldfs mount` and returns when it is ready; the returned function ends it.
func startMount(ctx context.Context, host, mnt string) (func() error, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.CommandContext(ctx, exe, "mount", "--log-level=warn", host, mnt)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = append(os.Environ(), readyEnv+"=3")
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, err
	}
	line, _ := bufio.NewReader(r).ReadString('\n')
	if said := strings.TrimSpace(line); said != readyWord {
		cmd.Wait()
		return nil, fmt.Errorf("the mount did not start: %s", said)
	}
	return func() error {
		cmd.Process.Signal(unix.SIGTERM)
		return cmd.Wait()
	}, nil
}

// removeDemo deletes the demo's directories, but never through a mount that is still there.
func removeDemo(top, host, mnt string) error {
	if m, _ := findMount(mnt); m != nil {
		if err := umount(mnt, true, false); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(host), os.Remove(mnt), os.Remove(top))
}
