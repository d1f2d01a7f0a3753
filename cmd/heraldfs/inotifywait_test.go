//go:build linux

package main

import (
	"bufio"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// lineStream is a watcher process and the lines that it printed.
type lineStream struct {
	name  string
	mu    sync.Mutex
	cond  *sync.Cond
	lines []string
	ended bool
}

// start runs a watcher until the test ends, and waits until its watches are set.
func start(t *testing.T, cmd *exec.Cmd) *lineStream {
	t.Helper()
	s := &lineStream{name: cmd.Args[0]}
	s.cond = sync.NewCond(&s.mu)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	errs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for sc := bufio.NewScanner(errs); sc.Scan(); {
			if sc.Text() == "Watches established." {
				close(ready)
			}
		}
	})
	wg.Go(func() {
		for sc := bufio.NewScanner(out); sc.Scan(); {
			s.mu.Lock()
			s.lines = append(s.lines, sc.Text())
			s.mu.Unlock()
			s.cond.Broadcast()
		}
		s.mu.Lock()
		s.ended = true
		s.mu.Unlock()
		s.cond.Broadcast()
	})
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGINT)
		wg.Wait()
		_ = cmd.Wait()
	})
	select {
	case <-ready:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s did not get ready", s.name)
	}
	return s
}

// take returns the lines before the one that has sentinel in it.
func (s *lineStream) take(t *testing.T, sentinel string) []string {
	t.Helper()
	late := false
	timer := time.AfterFunc(20*time.Second, func() {
		s.mu.Lock()
		late = true
		s.mu.Unlock()
		s.cond.Broadcast()
	})
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for from := 0; ; {
		for ; from < len(s.lines); from++ {
			if strings.Contains(s.lines[from], sentinel) {
				got := s.lines[:from:from]
				s.lines = s.lines[from+1:]
				return got
			}
		}
		if late || s.ended {
			t.Fatalf("%s: no %s in %q", s.name, sentinel, s.lines)
		}
		s.cond.Wait()
	}
}

// asPairs writes what heraldfs prints as inotifywait would: a rename is two lines.
func asPairs(lines []string) []string {
	var out []string
	for _, l := range lines {
		f := strings.SplitN(l, " ", 3)
		old, dst, ok := strings.Cut(f[2], " -> ")
		kind, isDir, _ := strings.Cut(f[1], ",")
		if !ok || (kind != "RENAME" && kind != "EXCHANGE") {
			out = append(out, l)
			continue
		}
		if isDir != "" {
			isDir = ",ISDIR"
		}
		dir, name := filepath.Split(dst)
		pair := []string{f[0] + " MOVED_FROM" + isDir + " " + old, dir + " MOVED_TO" + isDir + " " + name}
		out = append(out, pair...)
		if kind == "EXCHANGE" {
			out = append(out, dir+" MOVED_FROM"+isDir+" "+name, f[0]+" MOVED_TO"+isDir+" "+old)
		}
	}
	return out
}

// withoutSelf leaves out what inotifywait prints a second time, without a name: that of a directory which
// its parent's watch told already.
func withoutSelf(lines []string, root string) []string {
	var out []string
	for _, l := range lines {
		f := strings.SplitN(l, " ", 3)
		if f[2] == "" && f[0] != root+"/" {
			continue
		}
		out = append(out, l)
	}
	return out
}

// TestAgainstInotifywait compares, step by step, with what inotifywait -m -r prints.
func TestAgainstInotifywait(t *testing.T) {
	testenv.NeedTool(t, "inotifywait")
	for _, backend := range []string{"fanotify", "inotify"} {
		for seed := range int64(3) {
			t.Run(fmt.Sprintf("%s/%d", backend, seed), func(t *testing.T) {
				if backend == "fanotify" {
					testenv.Need(t, testenv.Root, testenv.Fanotify)
				}
				compareWalk(t, backend, seed)
			})
		}
	}
}

func compareWalk(t *testing.T, backend string, seed int64) {
	base := t.TempDir()
	root, out := filepath.Join(base, "root"), filepath.Join(base, "out")
	for _, d := range []string{"a/b/c", "d"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(out, 0o700); err != nil {
		t.Fatal(err)
	}
	const events = "create,delete,modify,attrib,close_write,move"
	theirs := start(t, exec.Command("inotifywait", "-m", "-r", "-e", events, root))
	ours := start(t, &exec.Cmd{Path: os.Args[0], Args: []string{"heraldfs", "watch", "-m", "-r", "--watcher=" + backend, "-e", events, root}})

	rng := rand.New(rand.NewSource(seed))
	told := 0
	for step := range 250 {
		what := oneChange(t, rng, root, out, step)
		var got, want []string
		if name, ok := strings.CutPrefix(what, "out "); ok {
			// With inotify a rename waits a moment for its other half, and lets others pass.
			moved := "MOVED_FROM " + filepath.Base(name)
			want, got = theirs.take(t, moved), ours.take(t, moved)
		}
		sentinel := fmt.Sprintf("sentinel%d", step)
		if err := os.Mkdir(filepath.Join(root, sentinel), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(root, sentinel)); err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{"CREATE,ISDIR " + sentinel, "DELETE,ISDIR " + sentinel} {
			want = append(want, theirs.take(t, s)...)
			got = append(got, ours.take(t, s)...)
		}
		got, want = asPairs(got), withoutSelf(want, root)
		told += len(want)
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Fatalf("step %d: %s\nheraldfs:\n  %s\ninotifywait:\n  %s", step, what, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
		}
	}
	if told < 250 {
		t.Errorf("only %d lines compared", told)
	}
}

// hasDirs: after the rename of a directory with others in it, inotifywait 3.22 goes on with old
// paths, and does not watch what is made there. So it cannot judge that.
func hasDirs(dirs []string, dir string) bool {
	for _, d := range dirs {
		if strings.HasPrefix(d, dir+"/") {
			return true
		}
	}
	return false
}

// oneChange does one random thing and returns its description.
func oneChange(t *testing.T, rng *rand.Rand, root, out string, step int) string {
	t.Helper()
	var dirs, files []string
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		} else if err == nil {
			files = append(files, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := dirs[rng.Intn(len(dirs))]
	fresh := filepath.Join(dir, fmt.Sprintf("n%d", step))
	file := fresh
	kind := rng.Intn(11)
	if len(files) > 0 {
		file = files[rng.Intn(len(files))]
	} else if kind > 3 && kind != 8 {
		kind = 0
	}
	sub := dirs[rng.Intn(len(dirs))]
	what := ""
	switch kind {
	case 0, 1:
		what, err = "write "+fresh, os.WriteFile(fresh, []byte("x"), 0o600)
	case 2:
		what, err = "mkdir "+fresh, os.Mkdir(fresh, 0o700)
	case 3:
		if sub == root || hasDirs(dirs, sub) || strings.HasPrefix(dir+"/", sub+"/") {
			return "nothing"
		}
		what, err = "rename "+sub+" "+fresh, os.Rename(sub, fresh)
	case 4:
		what, err = "rename "+file+" "+fresh, os.Rename(file, fresh)
	case 5:
		what, err = "remove "+file, os.Remove(file)
	case 6:
		what, err = "chmod "+file, os.Chmod(file, os.FileMode(0o600|rng.Intn(64)))
	case 7:
		what, err = "out "+file, os.Rename(file, filepath.Join(out, filepath.Base(fresh)))
	case 8:
		what, err = "chmod "+dir, os.Chmod(dir, os.FileMode(0o700|rng.Intn(64)))
	case 9:
		what, err = "link "+file+" "+fresh, os.Link(file, fresh)
	case 10:
		other := files[rng.Intn(len(files))]
		what, err = "rename over "+other+" "+file, os.Rename(other, file)
	}
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return what
}
