package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// restless changes files of a repository until it is stopped.
type restless struct {
	quit chan struct{}
	done chan struct{}
	// changes and err belong to run until done is closed.
	changes int
	err     error
}

func startRestless(dir string) *restless {
	r := &restless{quit: make(chan struct{}), done: make(chan struct{})}
	go r.run(dir)
	return r
}

// stop returns how many changes were made.
func (r *restless) stop() (int, error) {
	close(r.quit)
	<-r.done
	return r.changes, r.err
}

func (r *restless) run(dir string) {
	defer close(r.done)
	tick := time.NewTicker(restlessGap)
	defer tick.Stop()
	for ; ; r.changes++ {
		select {
		case <-r.quit:
			return
		case <-tick.C:
		}
		if r.err = change(dir, r.changes); r.err != nil {
			return
		}
	}
}

// change makes the n-th change. Directories are visited in a scattered order.
func change(dir string, n int) error {
	d := n / 4 * 7 % walkDirs
	sub := filepath.Join(dir, fmt.Sprintf("p%d", d/50), fmt.Sprintf("d%d", d%50))
	extra := filepath.Join(sub, "extra")
	switch n % 4 {
	case 0:
		path := filepath.Join(sub, fmt.Sprintf("file%d.txt", n%walkPerDir))
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return rewrite(path, bytes.Map(turn, text))
	case 1:
		return os.WriteFile(extra, []byte("new"), 0o644)
	case 2:
		return os.Rename(extra, extra+"2")
	}
	if d%2 == 0 {
		// It stays, and is renamed over on the next visit.
		return os.Chmod(extra+"2", 0o640)
	}
	return os.Remove(extra + "2")
}

// rewrite changes content in place.
func rewrite(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(text, 0)
	return errors.Join(err, f.Close())
}

// turn swaps the case of letters, so that the size stays.
func turn(r rune) rune {
	if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
		return r ^ 0x20
	}
	return r
}
