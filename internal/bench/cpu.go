package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

const (
	cpuPaced = 500
	cpuBurst = 3000
	cpuGap   = 4 * time.Millisecond
	// cpuQuiet ends a burst: whoever has told nothing for so long is taken to be through.
	cpuQuiet = 2 * time.Second

	touchName = "inotifywait and a touch in the guest"
)

// attendant is a way to hear of a change.
type attendant struct {
	name string
	// start listens to the files of dir; nil and no error: it is not installed.
	start func(dir string) (*hearing, error)
}

// cpu measures what an event costs whoever makes it arrive.
func (b *bench) cpu() error {
	dir, err := b.source("cpu")
	if err != nil {
		return err
	}
	n := cpuBurst
	if b.quick {
		n = 200
	}
	files := make([]*os.File, n)
	for i := range files {
		if files[i], err = os.Create(filepath.Join(dir, fmt.Sprintf("f%d", i))); err != nil {
			return err
		}
		defer files[i].Close()
		if _, err := files[i].Write([]byte("x")); err != nil {
			return err
		}
	}
	t := b.report.add(fmt.Sprintf("What an event costs: writes to %d files of a directory, one every %v and all at once", n, cpuGap),
		"who", "is told", "delay p50", "CPU an event", "all at once: heard", "until then", "CPU an event", "target")
	results := map[string]expense{}
	list := b.attendants()
	for _, a := range list {
		b.say("  %s", a.name)
		h, err := a.start(dir)
		if err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		if h == nil {
			continue
		}
		e, err := b.attend(h, files)
		if err := errors.Join(err, h.stop()); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		h.done.Wait()
		results[a.name] = e
	}
	for _, a := range list {
		e, ok := results[a.name]
		if !ok {
			continue
		}
		target := ""
		if touch, ok := results[touchName]; ok && strings.HasPrefix(a.name, "heraldfs mount") {
			target = fmt.Sprintf("less CPU than %s: %s", touchName, verdict(e.paced < touch.paced && e.burst < touch.burst))
		}
		told := "a program on the host"
		if strings.HasPrefix(a.name, "heraldfs mount") || a.name == touchName {
			told = "watchers in the guest"
		}
		t.row(a.name, told, short(e.delay), short(e.paced), fmt.Sprintf("%d of %d", e.heard, n), short(e.took), short(e.burst), target)
	}
	t.note("CPU is that of the daemon, of the listening process, or of inotifywait, the shell and its touches; not that of who writes, nor, where there is a guest mount of somebody else's, of its daemon. Of native inotify it is the reading thread's.")
	t.note("The delay is from before the write to the event in the guest, or to the line of output; watchman collects for 20 ms on purpose.")
	t.note("A touch makes an ATTRIB of every change, and another event for the host. heraldfs makes the MODIFY that it was.")
	return nil
}

// expense is what an event costs.
type expense struct {
	delay, paced time.Duration
	heard        int64
	took, burst  time.Duration
}

func (b *bench) attend(h *hearing, files []*os.File) (e expense, err error) {
	write := func(i int) error {
		_, err := files[i%len(files)].WriteAt([]byte("y"), 0)
		return err
	}
	rounds := cpuPaced
	if b.quick {
		rounds = 50
	}
	// What comes first has to be warm.
	for i := range 20 {
		if err := errors.Join(write(i), b.ctx.Err()); err != nil {
			return e, err
		}
		time.Sleep(cpuGap)
	}
	time.Sleep(200 * time.Millisecond)
	before, err := h.cpu()
	if err != nil {
		return e, err
	}
	var delays []time.Duration
	for i := range rounds {
		time.Sleep(cpuGap)
		select {
		case <-h.next:
		default:
		}
		began := time.Now()
		if err := errors.Join(write(i), b.ctx.Err()); err != nil {
			return e, err
		}
		select {
		case at := <-h.next:
			delays = append(delays, at.Sub(began))
		case <-time.After(cpuQuiet):
			delays = append(delays, cpuQuiet)
		}
	}
	after, err := h.cpu()
	if err != nil {
		return e, err
	}
	e.delay, e.paced = median(delays), (after-before)/time.Duration(rounds)

	told := h.count.Load()
	began := time.Now()
	for i := range files {
		if err := write(i); err != nil {
			return e, err
		}
	}
	for {
		time.Sleep(10 * time.Millisecond)
		last := max(h.last.Load(), began.UnixNano())
		if h.count.Load()-told >= int64(len(files)) || time.Now().UnixNano()-last > cpuQuiet.Nanoseconds() || b.ctx.Err() != nil {
			break
		}
	}
	end, err := h.cpu()
	e.heard = h.count.Load() - told
	e.took = time.Duration(h.last.Load() - began.UnixNano())
	e.burst = (end - after) / time.Duration(len(files))
	return e, errors.Join(err, b.ctx.Err())
}

func (b *bench) attendants() []attendant {
	list := []attendant{
		{"native inotify", func(dir string) (*hearing, error) {
			h := newHearing()
			tid, stop, err := h.byInotify(dir, notify.Modify)
			if err != nil {
				return nil, err
			}
			h.cpu, h.stop = func() (time.Duration, error) { return cpuOfThread(tid) }, stop
			return h, nil
		}},
	}
	for _, backend := range []string{"fanotify", "inotify"} {
		list = append(list, attendant{"heraldfs mount, " + backend, func(dir string) (*hearing, error) { return b.inGuest(dir, backend) }})
	}
	list = append(list, attendant{touchName, b.touching})
	line := func(string) int { return 1 }
	for _, backend := range []string{"fanotify", "inotify"} {
		list = append(list, attendant{"heraldfs watch, " + backend, func(dir string) (*hearing, error) {
			h, _, err := b.byLines("Watches established", onStderr, line, b.program, "watch", "--watcher="+backend, "-e", "modify", "--format", "%w%f", dir)
			return h, err
		}})
	}
	for _, tool := range []string{"inotifywait", "fsnotifywait"} {
		list = append(list, attendant{tool + " -m -r", func(dir string) (*hearing, error) {
			path, err := exec.LookPath(tool)
			if err != nil {
				return nil, nil
			}
			h, _, err := b.byLines("Watches established", onStderr, line, path, "-m", "-r", "-e", "modify", "--format", "%w%f", dir)
			return h, err
		}})
	}
	return append(list, attendant{"fswatch -r", b.fswatchHearing}, attendant{"watchman, subscription", b.watchmanHearing})
}

// inGuest hears by a watch in a mount whose guest knows all files.
func (b *bench) inGuest(dir, backend string) (*hearing, error) {
	m, err := b.heraldfs(dir, "--watcher="+backend)
	if err != nil {
		return nil, err
	}
	h := newHearing()
	_, _, err = lstatWalk(m.point)
	if err == nil {
		_, h.stop, err = h.byInotify(m.point, notify.Modify)
	}
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	h.cpu = func() (time.Duration, error) { return cpuOf(m.proc.cmd.Process.Pid) }
	unwatch := h.stop
	h.stop = func() error { return errors.Join(unwatch(), m.close()) }
	return h, nil
}

// touching is what is done without us: inotifywait on the host, and for each event a touch of the file in the guest,
// here a mount by go-fuse's loopback.
func (b *bench) touching(dir string) (*hearing, error) {
	path, err := exec.LookPath("inotifywait")
	if err != nil {
		return nil, nil
	}
	m, err := b.goFuse(dir)
	if err != nil {
		return nil, err
	}
	h := newHearing()
	_, unwatch, err := h.byInotify(m.point, notify.Attrib)
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	// A touch is an ATTRIB on the host, too, which must not be heard there.
	script := `"$1" -m -r -e modify --format %f "$2" | while read -r f; do touch -c "$3/$f"; done`
	p, err := b.start("Watches established", onStderr, "sh", "-c", script, "sh", path, dir, m.point)
	if err != nil {
		return nil, errors.Join(err, unwatch(), m.close())
	}
	h.cpu = func() (time.Duration, error) { return cpuOfFamily(p.cmd.Process.Pid) }
	h.stop = func() error {
		// The whole group: the shell does not pass a signal on.
		err := unix.Kill(-p.cmd.Process.Pid, unix.SIGTERM)
		p.lax = true
		return errors.Join(err, p.stop(unix.SIGTERM), unwatch(), m.close())
	}
	return h, nil
}

func (b *bench) fswatchHearing(dir string) (*hearing, error) {
	program, err := exec.LookPath("fswatch")
	if err != nil {
		return nil, nil
	}
	h := newHearing()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	p := &process{cmd: exec.Command(program, "-r", "--event=Updated", "-l", "0.1", dir), lax: true}
	p.cmd.Stdout, p.cmd.Stderr = w, &p.output
	if err := p.cmd.Start(); err != nil {
		r.Close()
		return nil, err
	}
	h.done.Go(func() {
		defer r.Close()
		for lines := bufio.NewScanner(r); lines.Scan(); {
			h.heard(1)
		}
	})
	h.cpu = func() (time.Duration, error) { return cpuOf(p.cmd.Process.Pid) }
	h.stop = func() error { return p.stop(unix.SIGTERM) }
	// It does not say when it is ready.
	file := filepath.Join(dir, "f0")
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if err := errors.Join(rewrite(file, []byte("z")), b.ctx.Err()); err != nil {
			return nil, errors.Join(err, h.stop())
		}
		select {
		case <-h.next:
			return h, nil
		case <-time.After(200 * time.Millisecond):
		}
	}
	return nil, errors.Join(fmt.Errorf("told nothing within %v", patience), h.stop())
}

func (b *bench) watchmanHearing(dir string) (*hearing, error) {
	h := newHearing()
	depth := len(b.undo)
	p, lines, err := b.watchmanSubscription(dir)
	if err != nil || p == nil {
		return nil, errors.Join(err, b.unwind(depth))
	}
	h.done.Go(func() {
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			var m struct{ Files []json.RawMessage }
			if json.Unmarshal([]byte(line), &m) == nil && len(m.Files) > 0 {
				h.heard(len(m.Files))
			}
		}
	})
	undo := slices.Clone(b.undo[depth:])
	b.undo = b.undo[:depth]
	h.cpu = func() (time.Duration, error) { return cpuOf(p.cmd.Process.Pid) }
	h.stop = func() error {
		var errs []error
		for _, f := range slices.Backward(undo) {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	}
	return h, nil
}
