package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// The tree for memory: what the daemon keeps of each file decides how large a tree can be.
const (
	knownDirs   = 100
	knownPerDir = 1000
	knownTarget = 300
)

// memory measures what a daemon keeps of each file that the guest's kernel knows.
func (b *bench) memory() error {
	src, err := b.source("memory")
	if err != nil {
		return err
	}
	dirs, perDir := knownDirs, knownPerDir
	if b.quick {
		dirs = 10
	}
	for i := range dirs {
		dir := filepath.Join(src, strconv.Itoa(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		for j := range perDir {
			if err := unix.Mknod(filepath.Join(dir, "file"+strconv.Itoa(j)), unix.S_IFREG|0o644, 0); err != nil {
				return err
			}
		}
	}
	total := dirs*perDir + dirs
	t := b.report.add(fmt.Sprintf("Memory of the daemon, of a tree of %d files", total),
		"mount", "before", "after a walk", "bytes a file", "first walk", "target")
	for _, p := range b.peers()[1:] {
		m, err := p.open(b, src)
		if err != nil {
			return err
		}
		before, err := weigh(m.proc)
		began := time.Now()
		n, _, walkErr := lstatWalk(m.point)
		took := time.Since(began)
		if walkErr != nil || n != total+1 {
			t.row(p.name, megabytes(before.rss), "failed", "", "", "")
			if err := errors.Join(err, m.close()); err != nil {
				return err
			}
			continue
		}
		after, afterErr := weigh(m.proc)
		if err := errors.Join(err, afterErr, m.close()); err != nil {
			return err
		}
		each := float64(after.rss-before.rss) * 1024 / float64(total)
		said := ""
		if p.name == "heraldfs" {
			said = fmt.Sprintf("%d: %s", knownTarget, verdict(each <= knownTarget))
		}
		t.row(p.name, megabytes(before.rss), megabytes(after.rss), fmt.Sprintf("%.0f", each), short(took), said)
	}
	t.note("Resident memory, garbage that was not collected yet included. passthrough_hp needs a descriptor for each file.")
	return nil
}
