package parity

import (
	"bufio"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// hang is how long a bed may live. What is longer does not answer any more, and would never end.
	hang = 5 * time.Minute
	// patience is how long a process may take to end.
	patience = 30 * time.Second
)

// procs are the processes of a bed, in the order of their start. The share's comes first: whoever waits for it
// goes on when it is gone.
type procs struct {
	mu    sync.Mutex
	cmds  []*exec.Cmd
	timer *time.Timer
}

// started has a process killed if the test hangs, so that it fails and does not wait for ever: a share that does
// not answer holds whoever asks it in a system call. It is to be called when cmd has been started.
func (b *bed) started(cmd *exec.Cmd) {
	p := &b.procs
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmds = append(p.cmds, cmd)
	if p.timer != nil {
		return
	}
	p.timer = time.AfterFunc(hang, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		b.t.Errorf("the test hangs: still not done after %v; its processes are killed", hang)
		for _, cmd := range p.cmds {
			// An error says that it has ended.
			_ = cmd.Process.Kill()
		}
	})
	b.t.Cleanup(func() { p.timer.Stop() })
}

// stop ends a process and reaps it. It is killed if it does not end.
func (b *bed) stop(cmd *exec.Cmd) {
	b.t.Helper()
	cmd.Process.Signal(unix.SIGTERM)
	slow := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer slow.Stop()
	if err := cmd.Wait(); err != nil {
		b.t.Errorf("%s ended: %v, after %v of CPU", filepath.Base(cmd.Path), err, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
	}
}

// until starts a helper and waits for it to print something. The test's end ends it.
func (b *bed) until(cmd *exec.Cmd, out io.Reader, word string) {
	b.t.Helper()
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.started(cmd)
	said, ready := make(chan string, 1), make(chan struct{})
	go func() {
		var text strings.Builder
		once := sync.OnceFunc(func() { close(ready) })
		for s := bufio.NewScanner(out); s.Scan(); {
			if strings.Contains(s.Text(), word) {
				once()
			}
			text.WriteString(s.Text() + "\n")
		}
		said <- text.String()
	}()
	b.t.Cleanup(func() {
		failed := b.t.Failed()
		b.stop(cmd)
		if text := <-said; b.t.Failed() && !failed {
			b.t.Logf("%s said:\n%s", filepath.Base(cmd.Path), text)
		}
	})
	select {
	case <-ready:
	case <-time.After(20 * time.Second):
		b.t.Fatalf("%v does not say %q", cmd.Args, word)
	}
}
