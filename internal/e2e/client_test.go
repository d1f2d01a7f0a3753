package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// client is a program that prints a line for each event.
type client struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.Closer
	mu    sync.Mutex
	grew  *sync.Cond
	lines []string
	gone  bool
	ended chan struct{}
}

// start runs cmd and returns when it has printed the line that says that it listens.
func start(t testing.TB, cmd *exec.Cmd, ready string) *client {
	t.Helper()
	r, w, err := os.Pipe()
	check(t, err)
	cmd.Stdout, cmd.Stderr = w, w
	stdin, err := cmd.StdinPipe()
	check(t, err)
	err = cmd.Start()
	w.Close()
	check(t, err)
	c := &client{t: t, cmd: cmd, stdin: stdin, ended: make(chan struct{})}
	c.grew = sync.NewCond(&c.mu)
	go func() {
		defer close(c.ended)
		defer r.Close()
		for s := bufio.NewScanner(r); s.Scan(); {
			c.mu.Lock()
			c.lines = append(c.lines, s.Text())
			c.grew.Broadcast()
			c.mu.Unlock()
		}
		cmd.Wait()
		c.mu.Lock()
		c.gone = true
		c.grew.Broadcast()
		c.mu.Unlock()
	}()
	t.Cleanup(c.stop)
	c.wait(ready, func(line string) bool { return strings.HasSuffix(line, ready) })
	c.mu.Lock()
	c.lines = nil
	c.mu.Unlock()
	return c
}

// stop ends the client. Idempotent.
func (c *client) stop() {
	c.stdin.Close()
	select {
	case <-c.ended:
		return
	default:
	}
	c.cmd.Process.Signal(unix.SIGKILL)
	<-c.ended
}

// wait returns when a line was printed.
func (c *client) wait(what string, is func(line string) bool) {
	c.t.Helper()
	late := time.Now().Add(patience)
	timer := time.AfterFunc(patience, func() {
		c.mu.Lock()
		c.grew.Broadcast()
		c.mu.Unlock()
	})
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !slices.ContainsFunc(c.lines, is) {
		if c.gone || !time.Now().Before(late) {
			c.t.Fatalf("%v did not print %q; only:\n  %s", c.cmd.Args, what, strings.Join(c.lines, "\n  "))
		}
		c.grew.Wait()
	}
}

// tell performs the script on two host directories: plain, which the native client watches, and
// src, which is mounted where the guest's client is. A fence that both have to print
// ends each step. sync is `heraldfs sync` of the mount: a move out of the tree can be
// told later than what happens in other directories.
//
// Two directories, because the daemon's own references to what is removed from SOURCE
// would show natively: DELETE_SELF waits for the last of them.
//
// With slow, only what a client has to follow with new watches is fenced.
func tell(t testing.TB, slow bool, plain string, native *client, src string, guest *client, sync func()) {
	t.Helper()
	for i, s := range script("../outside") {
		check(t, s.do(plain))
		check(t, s.do(src))
		sync()
		if slow && !s.dir && i < len(script("../outside"))-1 {
			continue
		}
		name := fmt.Sprintf("fence-%d", i)
		check(t, os.Mkdir(filepath.Join(plain, name), 0o755))
		check(t, os.Mkdir(filepath.Join(src, name), 0o755))
		for _, c := range []*client{native, guest} {
			c.wait(name, func(line string) bool { return strings.Contains(line, name) })
		}
	}
}

// normal returns what was printed with root taken off the paths and the cookies of inotifywait
// numbered. Equal neighbours are one.
func (c *client) normal(root string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	cookies := map[string]string{"0": "0"}
	var out []string
	for _, line := range c.lines {
		line = strings.ReplaceAll(line, root, "")
		if fields := strings.Split(line, "|"); len(fields) == 3 {
			if cookies[fields[1]] == "" {
				cookies[fields[1]] = fmt.Sprint(len(cookies))
			}
			fields[1] = cookies[fields[1]]
			line = strings.Join(fields, "|")
		}
		if len(out) == 0 || out[len(out)-1] != line {
			out = append(out, line)
		}
	}
	return out
}

// equal compares what a client printed natively with what it printed in the guest.
func equal(t testing.TB, native, guest []string) {
	t.Helper()
	for i := range max(len(native), len(guest)) {
		var n, g string
		if i < len(native) {
			n = native[i]
		}
		if i < len(guest) {
			g = guest[i]
		}
		if n != g {
			t.Errorf("line %d: natively %q, in the guest %q\nnatively:\n  %s\nin the guest:\n  %s", i+1, n, g,
				strings.Join(native, "\n  "), strings.Join(guest, "\n  "))
			return
		}
	}
	if len(native) < 20 {
		t.Errorf("only %d lines: the client was hardly listening:\n  %s", len(native), strings.Join(native, "\n  "))
	}
}

func inotifyArgs(dir string) []string {
	return []string{"-m", "-r", "-e", "modify,attrib,close_write,moved_from,moved_to,create,delete,delete_self,move_self",
		"--format", "%e|%c|%w%f", dir}
}

// step is one change on the host.
type step struct {
	what string
	do   func(host string) error
	// dir says that a directory has a new name now.
	dir bool
}

// script is the story that every client is told. outside is a path next to the directory: files move
// there and back.
func script(outside string) []step {
	put := func(name, text string, flags int) step {
		return step{what: "write " + name, do: func(h string) error {
			f, err := os.OpenFile(h+"/"+name, os.O_WRONLY|flags, 0o644)
			if err != nil {
				return err
			}
			_, err = f.WriteString(text)
			return errors.Join(err, f.Close())
		}}
	}
	move := func(from, to string) step {
		return step{what: "rename " + from + " " + to, dir: from == "d", do: func(h string) error { return os.Rename(h+"/"+from, h+"/"+to) }}
	}
	remove := func(name string) step {
		return step{what: "remove " + name, do: func(h string) error { return os.Remove(h + "/" + name) }}
	}
	mkdir := func(name string) step {
		return step{what: "mkdir " + name, dir: true, do: func(h string) error { return os.Mkdir(h+"/"+name, 0o755) }}
	}
	return []step{
		put("a", "one", os.O_CREATE),
		put("a", "ONE", 0),
		put("a", "more", os.O_APPEND),
		put("a", "", os.O_TRUNC),
		{what: "chmod a", do: func(h string) error { return os.Chmod(h+"/a", 0o600) }},
		move("a", "b"),
		mkdir("d"),
		put("d/x", "in d", os.O_CREATE),
		move("b", "d/b"),
		mkdir("d/e"),
		put("d/e/deep", "in e", os.O_CREATE),
		move("d", "moved"),
		put("moved/e/deep", "after the move", os.O_TRUNC),
		{what: "link", do: func(h string) error { return os.Link(h+"/moved/x", h+"/hard") }},
		{what: "symlink", do: func(h string) error { return os.Symlink("hard", h+"/soft") }},
		put("old", "will be replaced", os.O_CREATE),
		put("new", "replaces", os.O_CREATE),
		move("new", "old"),
		{what: "exchange", do: func(h string) error {
			return unix.Renameat2(unix.AT_FDCWD, h+"/old", unix.AT_FDCWD, h+"/hard", unix.RENAME_EXCHANGE)
		}},
		move("moved/x", outside),
		move(outside, "back"),
		remove("back"),
		remove("moved/e/deep"),
		remove("moved/e"),
		remove("moved/b"),
		remove("moved"),
		remove("soft"),
	}
}
