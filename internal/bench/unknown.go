package main

import (
	"bufio"
	"bytes"
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

// unknownSize is how many files are changed in each way.
const unknownSize = 2000

// unknown proves that changes in a directory that the guest has not looked at
// cause no FUSE request.
func (b *bench) unknown() error {
	if _, err := exec.LookPath("strace"); err != nil {
		b.say("unknown: skipped, strace is not installed")
		return nil
	}
	host, err := b.source("unknown")
	if err != nil {
		return err
	}
	for _, dir := range []string{"known", "unknown"} {
		if err := os.Mkdir(filepath.Join(host, dir), 0o755); err != nil {
			return err
		}
	}
	t := b.report.add(
		fmt.Sprintf("FUSE requests caused by %d changes on the host (%d files created, written, renamed, deleted)", 4*unknownSize, unknownSize),
		"watcher", "`sync` alone", "changes in an unknown directory, and `sync`", "changes in a known directory, and `sync`", "target")
	for _, backend := range []string{"fanotify", "inotify"} {
		depth := len(b.undo)
		if err := errors.Join(b.unknownOf(t, host, backend), b.unwind(depth)); err != nil {
			return err
		}
	}
	t.note("Counted as reads of /dev/fuse in the daemon, with strace, which sees no requests that come by io_uring. The known directory is there to show that counting works.")
	return nil
}

func (b *bench) unknownOf(t *table, host, backend string) error {
	m, err := b.heraldfs(host, "--watcher="+backend, "--io-uring=off")
	if err != nil {
		return err
	}
	b.later(m.close)
	if _, err := os.ReadDir(filepath.Join(m.point, "known")); err != nil {
		return err
	}
	// A watch of the root keeps the replayer at work, and the root known.
	fd, _, err := watch(m.point, delayMask, unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := m.sync(); err != nil {
		return err
	}
	var counts [3]int
	for i, dir := range []string{"", "unknown", "known"} {
		counts[i], err = b.requests(m, func() error {
			if dir != "" {
				if err := churn(filepath.Join(host, dir)); err != nil {
					return err
				}
			}
			return m.sync()
		})
		if err != nil {
			return err
		}
	}
	t.row(backend, strconv.Itoa(counts[0]), strconv.Itoa(counts[1]), strconv.Itoa(counts[2]),
		"no more than `sync`: "+verdict(counts[1] <= counts[0] && counts[2] > unknownSize))
	return nil
}

func churn(dir string) error {
	for i := range unknownSize {
		a, z := filepath.Join(dir, fmt.Sprintf("a%d", i)), filepath.Join(dir, fmt.Sprintf("z%d", i))
		if err := errors.Join(os.WriteFile(a, []byte("x"), 0o644), os.Rename(a, z), os.Remove(z)); err != nil {
			return err
		}
	}
	return nil
}

// requests counts the FUSE requests that the daemon of m reads while f runs.
func (b *bench) requests(m *mount, f func() error) (int, error) {
	out := filepath.Join(b.dir, "strace.out")
	defer os.Remove(out)
	cmd := exec.Command("strace", "-f", "-e", "trace=read", "-e", "signal=none", "-s", "0", "-P", "/dev/fuse", "-o", out, "-p", strconv.Itoa(m.proc.cmd.Process.Pid))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	kill := time.AfterFunc(3*patience, func() { cmd.Process.Kill() })
	defer kill.Stop()
	end := func() { cmd.Process.Signal(unix.SIGINT); cmd.Wait() }
	lines := bufio.NewReader(stderr)
	for {
		line, err := lines.ReadString('\n')
		if strings.Contains(line, "attached") {
			break
		}
		if err != nil {
			end()
			return 0, fmt.Errorf("strace does not attach: %w: %s", err, line)
		}
	}
	go io.Copy(io.Discard, lines)
	err = f()
	end()
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(out)
	if err != nil {
		return 0, err
	}
	return countReads(text), nil
}

// countReads counts the reads that returned something, whole or resumed.
func countReads(text []byte) int {
	got := regexp.MustCompile(`^\d+ .*read.* = [1-9]\d*$`)
	n := 0
	for line := range bytes.Lines(text) {
		if got.Match(bytes.TrimSpace(line)) {
			n++
		}
	}
	return n
}
