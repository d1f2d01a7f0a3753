package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// manyDirs is how many directories are watched, or known to the guest. passthrough_hp has not descriptors for more.
const manyDirs = 15000

// dirs measures what whoever watches a tree, or shows it, keeps of each directory.
func (b *bench) dirs() error {
	dir, err := b.source("dirs")
	if err != nil {
		return err
	}
	n := manyDirs
	if b.quick {
		n = 1000
	}
	if err := makeDirs(b, dir, n); err != nil {
		return err
	}
	t := b.report.add(fmt.Sprintf("Memory of a directory, of %d", n), "who", "before", "with all", "bytes a directory", "kernel memory, bytes a directory", "marks")
	row := func(name string, empty, full cost) {
		each := func(kb int) string { return strconv.Itoa(max(0, kb) * 1024 / n) }
		t.row(name, megabytes(empty.rss), megabytes(full.rss), each(full.rss-empty.rss), each(full.slab-empty.slab), strconv.Itoa(full.marks))
	}
	mounted := func(name string, open func() (*mount, error)) error {
		m, err := open()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		empty, err := weigh(m.proc)
		if err == nil {
			_, _, err = lstatWalk(m.point)
		}
		full, e := weigh(m.proc)
		if err := errors.Join(err, e, m.close()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		row(name, empty, full)
		return nil
	}
	for _, backend := range []string{"fanotify", "inotify"} {
		if err := mounted("heraldfs mount, "+backend, func() (*mount, error) { return b.heraldfs(dir, "--watcher="+backend) }); err != nil {
			return err
		}
	}
	for _, p := range b.peers()[1:] {
		if ours(p.name) {
			continue
		}
		if err := mounted(p.name, func() (*mount, error) { return p.open(b, dir) }); err != nil {
			b.say("  %v", err)
		}
	}
	none, err := b.source("dirs-none")
	if err != nil {
		return err
	}
	// watchman has nothing to say of an empty directory.
	if err := os.WriteFile(filepath.Join(none, "file"), nil, 0o644); err != nil {
		return err
	}
	listening := func(name, word string, argv ...string) error {
		path, err := exec.LookPath(argv[0])
		if err != nil {
			return nil
		}
		var got [2]cost
		for i, at := range []string{none, dir} {
			before, err := slabKB()
			if err != nil {
				return err
			}
			p, err := b.start(word, onStderr, append(append([]string{path}, argv[1:]...), at)...)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			p.lax = true
			c, err := weigh(p)
			if err := errors.Join(err, p.stop(unix.SIGTERM)); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			c.slab -= before
			got[i] = c
		}
		row(name, got[0], got[1])
		return nil
	}
	for _, backend := range []string{"fanotify", "inotify"} {
		if err := listening("heraldfs watch, "+backend, "Watches established", b.program, "watch", "--watcher="+backend, "--format", "%w%f"); err != nil {
			return err
		}
	}
	if err := listening("inotifywait -m -r", "Watches established", "inotifywait", "-m", "-r"); err != nil {
		return err
	}
	depth := len(b.undo)
	var got [2]cost
	for i, at := range []string{none, dir} {
		before, err := slabKB()
		if err != nil {
			return err
		}
		p, _, err := b.watchmanSubscription(at)
		if err != nil || p == nil {
			return errors.Join(err, b.unwind(depth))
		}
		c, err := weigh(p)
		if err := errors.Join(err, b.unwind(depth)); err != nil {
			return err
		}
		c.slab -= before
		got[i] = c
	}
	row("watchman", got[0], got[1])
	t.note("A mount is walked first, so that its guest knows every directory; its kernel memory is that of the guest's inodes and names as well. Whoever watches has the tree from the start.")
	t.note("Kernel memory is how much the machine's slab grew: other programs move it, too, and inodes of the tree that are in memory anyway are not in it.")
	return nil
}
