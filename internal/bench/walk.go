package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	walkDirs    = 1000
	walkPerDir  = 20
	walkTarget  = 1.15
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
func (b *bench) repository(dir string) error {
	old := time.Now().Add(-time.Hour)
	for i := range walkDirs {
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
	if err := b.repository(src); err != nil {
		return err
	}
	mounts, err := b.all(src)
	if err != nil {
		return err
	}
	title := fmt.Sprintf("Warm walks of a git repository of %d files in %d directories, medians of %d rounds", walkDirs*walkPerDir, walkDirs, b.rounds)
	if err := b.walks(title, mounts, "Go-fuse's loopback and bindfs let names and attributes expire after a second, so their walks are never wholly warm."); err != nil {
		return err
	}
	r := startRestless(src)
	err = b.walks(title+", while the host changes files", mounts, fmt.Sprintf("The host makes a change every %v: a same-size rewrite, a create, a rename or a delete.", restlessGap))
	changes, stopErr := r.stop()
	if err := errors.Join(err, stopErr); err != nil {
		return err
	}
	return b.coherent(mounts, changes)
}

func (b *bench) walks(title string, mounts []*mount, note string) error {
	t := b.report.add(title, comparedHeader("job", mounts)...)
	for _, j := range jobs() {
		times, err := b.inTurn(mounts, b.rounds, func(m *mount) error { return j.run(b.ctx, m.point) })
		if err != nil {
			return fmt.Errorf("%s: %w", j.name, err)
		}
		t.compared(j.name, times, j.target)
	}
	t.note("%s", note)
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

// coherent compares every mount with the host.
func (b *bench) coherent(mounts []*mount, changes int) error {
	t := b.report.add(fmt.Sprintf("Coherence after %d changes of the host during the walks", changes), "mount", "files that differ", "target")
	for _, m := range mounts[1:] {
		said := ""
		heraldfs := m.name == "heraldfs"
		if heraldfs {
			if err := m.sync(); err != nil {
				return err
			}
		}
		n, err := differences(mounts[0].point, m.point)
		if err != nil {
			return err
		}
		if heraldfs {
			said = "0: " + verdict(n == 0)
		}
		t.row(m.name, fmt.Sprint(n), said)
	}
	t.note("Names, types, modes, sizes, times and content are compared, heraldfs first and right after `heraldfs sync`; the others have had the longer to let their caches expire.")
	return nil
}

func differences(native, other string) (int, error) {
	want, err := inventory(native)
	if err != nil {
		return 0, err
	}
	got, err := inventory(other)
	if err != nil {
		return 0, err
	}
	n := 0
	for path, w := range want {
		if g, ok := got[path]; !ok || !slices.Equal(w, g) {
			n++
		}
		delete(got, path)
	}
	return n + len(got), nil
}

// inventory describes everything below dir, without .git.
func inventory(dir string) (map[string][]string, error) {
	all := map[string][]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == ".git" {
			return fs.SkipDir
		}
		st, err := os.Lstat(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		is := []string{st.Mode().String(), st.ModTime().String()}
		if st.Mode().IsRegular() {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			is = append(is, fmt.Sprint(st.Size()), string(text))
		}
		all[rel] = is
		return nil
	})
	return all, err
}
