package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	walkDirs   = 1000
	walkPerDir = 20
	walkTarget = 1.15
	// fewRounds is enough for what has no target.
	fewRounds   = 5
	restlessGap = 2 * time.Millisecond
)

// job is something that people do all day with a tree.
type job struct {
	name   string
	target bool
	run    func(ctx context.Context, dir string) error
}

func jobs() []job {
	all := []job{
		{"find -printf %s", true, func(ctx context.Context, dir string) error {
			return command(ctx, dir, "find", ".", "-ignore_readdir_race", "-printf", "%s\n")
		}},
		{"stat of every file", true, func(_ context.Context, dir string) error {
			_, _, err := lstatWalk(dir)
			return err
		}},
		{"git status", true, func(ctx context.Context, dir string) error {
			return command(ctx, dir, "git", "status", "--porcelain")
		}},
		{"grep -r", false, func(ctx context.Context, dir string) error {
			return command(ctx, dir, "grep", "-r", "--exclude-dir=.git", "no such words", ".")
		}},
	}
	if _, err := exec.LookPath("rg"); err == nil {
		all = append(all, job{"rg", false, func(ctx context.Context, dir string) error {
			return command(ctx, dir, "rg", "--no-config", "no such words", ".")
		}})
	}
	return all
}

// command runs a program in dir. Like grep it may end with 1 to say that it found
// nothing, or with 2 because a file that it had seen in a listing was removed before it was opened.
func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// GIT_OPTIONAL_LOCKS=0: status does not write the index, which all share.
	cmd.Env = append(os.Environ(), "GIT_OPTIONAL_LOCKS=0", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "LC_ALL=C")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() <= 2 && onlyRaces(stderr.String()) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s in %s: %w: %s", name, dir, err, stderr.String())
	}
	return nil
}

func onlyRaces(stderr string) bool {
	for line := range strings.Lines(stderr) {
		if !strings.Contains(line, "No such file or directory") {
			return false
		}
	}
	return true
}

// lstatWalk asks for the attributes of every file. It returns how many there
// are and the sum of their sizes.
func lstatWalk(dir string) (files int, size int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		files, size = files+1, size+st.Size()
		return nil
	})
	return files, size, err
}

// repository fills dir with files that git knows.
func (b *bench) repository(dir string, dirs int) error {
	old := time.Now().Add(-time.Hour)
	for i := range dirs {
		sub := filepath.Join(dir, fmt.Sprintf("p%d", i/50), fmt.Sprintf("d%d", i%50))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		for j := range walkPerDir {
			path := filepath.Join(sub, fmt.Sprintf("file%d.txt", j))
			text := strings.Repeat(fmt.Sprintf("line %d of %d\n", j, i), 20+100*(j%3))
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				return err
			}
			// Older than the index, or git reads the file each time.
			if err := os.Chtimes(path, old, old); err != nil {
				return err
			}
		}
	}
	for _, args := range [][]string{
		{"init", "-q"},
		// Nothing may repack in the background.
		{"config", "gc.auto", "0"},
		{"add", "-A"},
		{"-c", "user.name=bench", "-c", "user.email=bench@example.org", "commit", "-q", "-m", "all"},
		{"gc", "-q"},
	} {
		if err := command(b.ctx, dir, "git", args...); err != nil {
			return err
		}
	}
	return nil
}

// walk times warm walks of a tree, quiet and while the host changes it.
func (b *bench) walk() error {
	src, err := b.source("walk")
	if err != nil {
		return err
	}
	b.say("  making a repository of %d files", walkDirs*walkPerDir)
	if err := b.repository(src, walkDirs); err != nil {
		return err
	}
	mounts, err := b.all(src)
	if err != nil {
		return err
	}
	title := fmt.Sprintf("Warm walks of a git repository of %d files in %d directories, medians", walkDirs*walkPerDir, walkDirs)
	t := b.report.add(title, comparedHeader("job", mounts)...)
	if err := b.walks(t, mounts, true); err != nil {
		return err
	}
	t.note("%d rounds for what has a target, %d for the rest.", b.rounds, min(b.rounds, fewRounds))
	t.note("Go-fuse's loopback and bindfs let names and attributes expire after a second, so their walks are never wholly warm.")
	r := startRestless(src)
	t = b.report.add(title+", while the host changes files", comparedHeader("job", mounts)...)
	err = b.walks(t, mounts, false)
	changes, stopErr := r.stop()
	if err := errors.Join(err, stopErr); err != nil {
		return err
	}
	t.note("The host made a change every %v: a same-size rewrite, a create, a rename or a delete. What must hold here is coherence, below.", restlessGap)
	return b.coherent(mounts, changes)
}

func (b *bench) walks(t *table, mounts []*mount, target bool) error {
	for _, j := range jobs() {
		rounds := b.rounds
		if !target || !j.target {
			rounds = min(rounds, fewRounds)
		}
		times, err := b.inTurn(mounts, rounds, func(m *mount) error { return j.run(b.ctx, m.point) })
		if err != nil {
			return fmt.Errorf("%s: %w", j.name, err)
		}
		t.compared(j.name, times, target && j.target)
	}
	return nil
}

// compared adds a row of medians and their ratios to the first.
func (t *table) compared(name string, times [][]time.Duration, target bool) {
	native := median(times[0])
	cells := []string{name, short(native)}
	for _, d := range times[1:] {
		cells = append(cells, short(median(d)), fmt.Sprintf("%.2f", ratio(median(d), native)))
	}
	said := ""
	if target {
		said = fmt.Sprintf("%.2f: %s", walkTarget, verdict(ratio(median(times[1]), native) <= walkTarget))
	}
	t.row(append(cells, said)...)
}

// inTurn times f on each mount, round by round, after two rounds that are not counted.
func (b *bench) inTurn(mounts []*mount, rounds int, f func(*mount) error) ([][]time.Duration, error) {
	const warmUp = 2
	times := make([][]time.Duration, len(mounts))
	for round := range warmUp + rounds {
		for k := range mounts {
			i := (k + round) % len(mounts)
			if b.ctx.Err() != nil {
				return nil, b.ctx.Err()
			}
			began := time.Now()
			if err := f(mounts[i]); err != nil {
				return nil, fmt.Errorf("%s: %w", mounts[i].name, err)
			}
			if round >= warmUp {
				times[i] = append(times[i], time.Since(began))
			}
		}
	}
	return times, nil
}
