//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// readyEnv names the descriptor on which the background process tells the one that
// was started by the user that it is mounted, or why not.
const readyEnv = "HERALDFS_READY_FD"

const readyWord = "ready"

// daemonize starts this command again in the background and waits for its word.
func daemonize() error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find our own program to go to the background: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = append(os.Environ(), readyEnv+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return fmt.Errorf("go to the background: %w", err)
	}
	w.Close()
	text, err := io.ReadAll(bufio.NewReader(r))
	switch said := strings.TrimSpace(string(text)); {
	case err != nil:
		return err
	case said == readyWord:
		return cmd.Process.Release()
	case said != "":
		cmd.Wait()
		return errors.New(said)
	default:
		return fmt.Errorf("the background process ended before it was ready: %v", cmd.Wait())
	}
}

var readyOnce sync.Once

// reportReady tells the waiting parent that the mount is there, or the error that
// ended us. It does nothing in the foreground.
func reportReady(err error) {
	fd, perr := strconv.Atoi(os.Getenv(readyEnv))
	if perr != nil {
		return
	}
	readyOnce.Do(func() {
		f := os.NewFile(uintptr(fd), "ready")
		defer f.Close()
		if err != nil {
			fmt.Fprintln(f, err)
			return
		}
		fmt.Fprintln(f, readyWord)
	})
}
