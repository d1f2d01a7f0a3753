package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// listener is a watcher that runs while the operations are made.
type listener struct {
	name string

	mu    sync.Mutex
	heard []told
	ended chan struct{} // lastWord was told, or the output has ended
	once  sync.Once

	spoken chan struct{} // something was told
	first  sync.Once
}

func newListener(name string) *listener {
	return &listener{name: name, ended: make(chan struct{}), spoken: make(chan struct{})}
}

func (l *listener) add(t told) {
	l.mu.Lock()
	l.heard = append(l.heard, t)
	l.mu.Unlock()
	l.first.Do(func() { close(l.spoken) })
	if t.path == lastWord {
		l.once.Do(func() { close(l.ended) })
	}
}

// listeners starts all that are installed and waits until they are ready.
func (b *bench) listeners(dir string) ([]*listener, error) {
	var list []*listener
	add := func(name, word string, hook func(*exec.Cmd, *os.File), parse func(line string) []told, argv ...string) error {
		path, err := exec.LookPath(argv[0])
		if err != nil {
			b.say("  %s is not installed; scripts/bench-deps.sh does that", argv[0])
			return nil
		}
		argv[0] = path
		l := newListener(name)
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer w.Close()
		go l.read(r, parse)
		// onStderr leaves the standard output to us.
		p, err := b.start(word, func(c *exec.Cmd, f *os.File) {
			hook(c, f)
			if c.Stdout == nil {
				c.Stdout = w
			}
		}, append(argv, dir)...)
		if err != nil {
			return err
		}
		p.lax = true
		b.later(func() error { return p.stop(unix.SIGTERM) })
		list = append(list, l)
		return nil
	}
	ours := func(backend string) error {
		return add("heraldfs watch, "+backend, "Watches established", onStderr, parseTemplate(dir), b.program, "watch", "--watcher="+backend,
			"-e", "create,delete,move", "--format", "%e|%o|%w%f")
	}
	for _, backend := range []string{"fanotify", "inotify", "portable"} {
		if err := ours(backend); err != nil {
			return nil, err
		}
	}
	for _, tool := range []string{"inotifywait", "fsnotifywait"} {
		if err := add(tool+" -m -r", "Watches established", onStderr, parseTemplate(dir), tool, "-m", "-r", "-e", "create,delete,move", "--format", "%e|%c|%w%f"); err != nil {
			return nil, err
		}
	}
	return list, errors.Join(b.fswatch(dir, &list), b.watchman(dir, &list))
}

func (l *listener) read(r io.ReadCloser, parse func(string) []told) {
	defer r.Close()
	defer l.once.Do(func() { close(l.ended) })
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		for _, t := range parse(lines.Text()) {
			l.add(t)
		}
	}
}

// below is path relative to dir; all paths of the generator are clean.
func below(dir, path string) string {
	rel, err := filepath.Rel(dir, path)
	if err != nil {
		return path
	}
	return rel
}

// parseTemplate understands "%e|%c|%w%f" of the family of inotifywait, and ours with "%o" in the middle.
func parseTemplate(dir string) func(string) []told {
	return func(line string) []told {
		parts := strings.SplitN(line, "|", 3)
		if len(parts) != 3 {
			return nil
		}
		path := below(dir, parts[2])
		for _, event := range strings.Split(parts[0], ",") {
			switch event {
			case "RENAME":
				return []told{{kind: 'r', path: below(dir, parts[1]), to: path}}
			case "CREATE":
				return []told{{kind: 'c', path: path}}
			case "DELETE":
				return []told{{kind: 'd', path: path}}
			case "MOVED_FROM":
				return []told{{kind: 'd', path: path, half: true}}
			case "MOVED_TO":
				return []told{{kind: 'c', path: path, half: true}}
			}
		}
		return nil
	}
}

// ready makes and removes a file until l tells of it: fswatch does not say when it is ready.
func (b *bench) ready(dir string, l *listener) error {
	path := filepath.Join(dir, probeName)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Remove(path), b.ctx.Err()); err != nil {
			return err
		}
		select {
		case <-l.spoken:
			return nil
		case <-time.After(50 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s told nothing within %v", l.name, patience)
}

func (b *bench) fswatch(dir string, list *[]*listener) error {
	program, err := exec.LookPath("fswatch")
	if err != nil {
		b.say("  fswatch is not installed; scripts/bench-deps.sh does that")
		return nil
	}
	l := newListener("fswatch -r")
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	p := &process{cmd: exec.Command(program, "-r", "-x", "--event-flag-separator=,", "-l", "0.1", dir), lax: true}
	p.cmd.Stdout, p.cmd.Stderr = w, &p.output
	if err := p.cmd.Start(); err != nil {
		r.Close()
		return err
	}
	b.later(func() error { return p.stop(unix.SIGTERM) })
	go l.read(r, func(line string) []told {
		at := strings.LastIndexByte(line, ' ')
		if at < 0 {
			return nil
		}
		path := below(dir, line[:at])
		var out []told
		flags := strings.Split(line[at+1:], ",")
		moved := slices.Contains(flags, "MovedFrom") || slices.Contains(flags, "MovedTo")
		for _, flag := range flags {
			switch flag {
			case "Created":
				out = append(out, told{kind: 'c', path: path, half: moved})
			case "Removed":
				out = append(out, told{kind: 'd', path: path, half: moved})
			}
		}
		return out
	})
	*list = append(*list, l)
	return b.ready(dir, l)
}

// watchman is spoken to by its socket. It tells states, not events, after a while of quiet.
func (b *bench) watchman(dir string, list *[]*listener) error {
	p, lines, err := b.watchmanSubscription(dir)
	if err != nil || p == nil {
		return err
	}
	l := newListener("watchman, subscription")
	go l.read(io.NopCloser(lines), parseWatchman)
	*list = append(*list, l)
	return nil
}

// watchmanSubscription returns what a watchman of our own says of dir; nil: it is not installed. All ends with unwind.
func (b *bench) watchmanSubscription(dir string) (*process, *bufio.Reader, error) {
	program, err := exec.LookPath("watchman")
	if err != nil {
		b.say("  watchman is not installed; scripts/bench-deps.sh does that")
		return nil, nil, nil
	}
	state, err := os.MkdirTemp("", "bench-watchman-")
	if err != nil {
		return nil, nil, err
	}
	b.later(func() error { return os.RemoveAll(state) })
	at := func(name string) string { return filepath.Join(state, name) }
	p := &process{cmd: exec.Command(program, "--foreground", "--no-save-state", "--sockname="+at("sock"), "--logfile="+at("log"), "--pidfile="+at("pid")), lax: true}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	if err := p.cmd.Start(); err != nil {
		return nil, nil, err
	}
	b.later(func() error { return p.stop(unix.SIGTERM) })
	var c net.Conn
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if c, err = net.Dial("unix", at("sock")); err == nil {
			break
		}
		if time.Now().After(end) || b.ctx.Err() != nil {
			return nil, nil, fmt.Errorf("watchman: %w", err)
		}
	}
	b.later(c.Close)
	lines := bufio.NewReader(c)
	for _, command := range []any{
		[]any{"watch", dir},
		[]any{"subscribe", dir, "s", map[string]any{"fields": []string{"name", "exists", "new"}}},
	} {
		text, err := json.Marshal(command)
		if err != nil {
			return nil, nil, err
		}
		if _, err := c.Write(append(text, '\n')); err != nil {
			return nil, nil, err
		}
		c.SetReadDeadline(time.Now().Add(patience))
		answer, err := lines.ReadString('\n')
		if err != nil || strings.Contains(answer, `"error"`) {
			return nil, nil, fmt.Errorf("watchman: %s: %w", answer, err)
		}
	}
	// What is there already comes first.
	if _, err := lines.ReadString('\n'); err != nil {
		return nil, nil, fmt.Errorf("watchman: %w", err)
	}
	c.SetReadDeadline(time.Time{})
	return p, lines, nil
}

func parseWatchman(line string) []told {
	var m struct {
		Files []struct {
			Name        string
			Exists, New bool
		}
	}
	if json.Unmarshal([]byte(line), &m) != nil {
		return nil
	}
	var out []told
	for _, f := range m.Files {
		switch {
		case !f.Exists:
			out = append(out, told{kind: 'd', path: f.Name})
		case f.New:
			out = append(out, told{kind: 'c', path: f.Name})
		}
	}
	return out
}
