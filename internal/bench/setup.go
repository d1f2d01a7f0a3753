package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	setupRounds = 5
	setupTarget = 100 * time.Millisecond
	setupBig    = 100000
	setupSmall  = 10
)

// cost is what something takes to be set up, and what it holds then.
type cost struct {
	ready time.Duration
	rss   int // kB
	slab  int // kB, of the whole machine
	marks int
}

// setup measures what it costs to begin to watch a large tree.
func (b *bench) setup() error {
	t := b.report.add(
		fmt.Sprintf("Set-up on a tree of %d and of %d directories", setupSmall, setupBig),
		"what", "directories", "exec to ready", "memory of the process", "kernel memory", "marks", "target")
	trees := map[int]string{}
	for _, n := range []int{setupSmall, setupBig} {
		dir, err := b.source(fmt.Sprintf("setup-%d", n))
		if err != nil {
			return err
		}
		b.say("  making %d directories", n)
		if err := makeDirs(b, dir, n); err != nil {
			return err
		}
		trees[n] = dir
	}
	mounted := func(backend string) func(string) (*process, func() error, error) {
		return func(dir string) (*process, func() error, error) {
			m, err := b.heraldfs(dir, "--watcher="+backend)
			if err != nil {
				return nil, nil, err
			}
			return m.proc, m.close, nil
		}
	}
	running := func(word string, hook func(*exec.Cmd, *os.File), argv ...string) func(string) (*process, func() error, error) {
		return func(dir string) (*process, func() error, error) {
			p, err := b.start(word, hook, append(argv, dir)...)
			if err != nil {
				return nil, nil, err
			}
			return p, func() error { return p.stop(unix.SIGTERM) }, nil
		}
	}
	type contender struct {
		name   string
		target bool
		start  func(dir string) (*process, func() error, error)
	}
	contenders := []contender{
		{"heraldfs mount, fanotify", true, mounted("fanotify")},
		{"heraldfs mount, inotify", true, mounted("inotify")},
		{watchName, false, running("ready", onStdout, b.program, "watch", "--format=json", "--watcher=fanotify")},
		{"heraldfs watch, inotify", false, running("ready", onStdout, b.program, "watch", "--format=json", "--watcher=inotify")},
	}
	if path, err := exec.LookPath("inotifywait"); err == nil {
		contenders = append(contenders, contender{rivalName, false, running("Watches established", onStderr, path, "-m", "-r")})
	}
	var ours cost
	for _, c := range contenders {
		for _, n := range []int{setupSmall, setupBig} {
			got, err := b.costs(func() (*process, func() error, error) { return c.start(trees[n]) })
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			target := ""
			if c.target && n == setupBig {
				target = fmt.Sprintf("%s: %s", short(setupTarget), verdict(got.ready <= setupTarget))
			}
			switch {
			case n != setupBig:
			case c.name == watchName:
				ours = got
			case c.name == rivalName:
				target = against(ours, got)
			}
			t.row(c.name, strconv.Itoa(n), short(got.ready), megabytes(got.rss), megabytes(got.slab), strconv.Itoa(got.marks), target)
		}
	}
	t.note("Medians of %d rounds. Marks are counted in /proc/PID/fdinfo. Kernel memory is how much the machine's slab grew meanwhile, to about 1 MB: other programs move it too.", setupRounds)
	t.note("A mount with inotify marks only what its guest knows: here, the root.")
	return nil
}

const (
	watchName = "heraldfs watch, fanotify"
	rivalName = "inotifywait -m -r"
	// setupRatio is how many times sooner ready and smaller in the kernel we mean to be.
	setupRatio = 10
)

// against says how a watch of ours compares with the rival's on the large tree.
func against(ours, rival cost) string {
	sooner := ratio(rival.ready, ours.ready)
	// Slab is read to about a megabyte; less than that counts as that.
	smaller := float64(rival.slab) / float64(max(ours.slab, 1024))
	return fmt.Sprintf("%s %d times sooner, with 1/%d of the kernel memory: %.0f, at least 1/%.0f: %s", watchName, setupRatio, setupRatio,
		sooner, smaller, verdict(sooner >= setupRatio && smaller >= setupRatio))
}

func makeDirs(b *bench, dir string, n int) error {
	for i := range n {
		if i%1000 == 0 && b.ctx.Err() != nil {
			return b.ctx.Err()
		}
		top := filepath.Join(dir, strconv.Itoa(i/1000))
		if i%1000 == 0 {
			// The first of each thousand is their parent.
			if err := os.Mkdir(top, 0o755); err != nil {
				return err
			}
			continue
		}
		if err := os.Mkdir(filepath.Join(top, strconv.Itoa(i%1000)), 0o755); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) costs(start func() (*process, func() error, error)) (cost, error) {
	var ready, rss, slab, marks []time.Duration
	for range setupRounds {
		if b.ctx.Err() != nil {
			return cost{}, b.ctx.Err()
		}
		before, err := slabKB()
		if err != nil {
			return cost{}, err
		}
		p, stop, err := start()
		if err != nil {
			return cost{}, err
		}
		c, err := weigh(p)
		if err := errors.Join(err, stop()); err != nil {
			return cost{}, err
		}
		ready, rss = append(ready, p.ready), append(rss, time.Duration(c.rss))
		slab, marks = append(slab, time.Duration(c.slab-before)), append(marks, time.Duration(c.marks))
	}
	return cost{median(ready), int(median(rss)), int(median(slab)), int(median(marks))}, nil
}

func weigh(p *process) (cost, error) {
	slab, err := slabKB()
	if err != nil {
		return cost{}, err
	}
	proc := "/proc/" + strconv.Itoa(p.cmd.Process.Pid)
	rss, err := field(proc+"/status", "VmRSS:")
	if err != nil {
		return cost{}, err
	}
	c := cost{rss: rss, slab: slab}
	infos, err := filepath.Glob(proc + "/fdinfo/*")
	if err != nil {
		return cost{}, err
	}
	for _, info := range infos {
		text, err := os.ReadFile(info)
		if err != nil {
			continue // closed meanwhile
		}
		c.marks += countMarks(text)
	}
	return c, nil
}

// countMarks counts the lines of fdinfo that stand for a mark:
//
//	inotify wd:1 ino:2 sdev:3 mask:fc6 ignored_mask:0 ...
//	fanotify sdev:3 mflags:0 mask:fc6 ignored_mask:0
func countMarks(text []byte) int {
	n := 0
	for line := range bytes.Lines(text) {
		if bytes.HasPrefix(line, []byte("inotify wd:")) ||
			bytes.HasPrefix(line, []byte("fanotify ")) && !bytes.HasPrefix(line, []byte("fanotify flags:")) {
			n++
		}
	}
	return n
}

func slabKB() (int, error) { return field("/proc/meminfo", "Slab:") }

// field reads a number of kB.
func field(path, name string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), name); ok {
			return strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(rest, "kB")))
		}
	}
	return 0, fmt.Errorf("%s: no %s", path, name)
}

func megabytes(kb int) string { return fmt.Sprintf("%.1f MB", float64(kb)/1024) }
