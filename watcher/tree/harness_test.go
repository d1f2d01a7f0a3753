//go:build linux

package tree

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher"
)

// deadline bounds each wait.
const deadline = 30 * time.Second

// recorder collects what a Tree emits.
type recorder struct {
	t    *testing.T
	tree *Tree

	mu      sync.Mutex
	cond    *sync.Cond
	records []Record
	err     error
	ended   bool
}

// watch runs a Tree on roots until the test ends, and waits until it is ready.
func watch(t *testing.T, o Options) *recorder {
	t.Helper()
	r := &recorder{t: t}
	r.cond = sync.NewCond(&r.mu)
	if testing.Verbose() {
		o.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	tree, err := Open(o)
	if errors.Is(err, notify.ErrNotSupported) {
		testenv.Lack(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	r.tree = tree
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := tree.Run(context.Background(), r.add)
		r.mu.Lock()
		r.err, r.ended = err, true
		r.mu.Unlock()
		r.cond.Broadcast()
	}()
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	r.wait("ready", func() bool { return len(r.records) > 0 })
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.records[0].Type != TypeReady {
		t.Fatalf("first record %v", r.records[0])
	}
	return r
}

func (r *recorder) add(records []Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, records...)
	r.cond.Broadcast()
}

// wait returns when cond, called with mu held, is true.
func (r *recorder) wait(what string, cond func() bool) {
	r.t.Helper()
	expired := false
	timer := time.AfterFunc(deadline, func() {
		r.mu.Lock()
		expired = true
		r.mu.Unlock()
		r.cond.Broadcast()
	})
	defer timer.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for !cond() {
		if expired || (r.ended && !cond()) {
			tail := r.records
			if len(tail) > 40 {
				tail = tail[len(tail)-40:]
			}
			r.t.Fatalf("no %s; ended %v, error %v; last of %d records:\n%v", what, r.ended, r.err, len(r.records), lines(tail))
		}
		r.cond.Wait()
	}
}

// fence returns everything that has come since the last one, up to now.
func (r *recorder) fence() []Record {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if err := r.tree.Barrier(ctx); err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.records
	r.records = nil
	if len(got) > 0 && got[0].Type == TypeReady {
		got = got[1:]
	}
	return got
}

func lines(records []Record) string {
	var b strings.Builder
	for _, r := range records {
		b.WriteString(r.String())
		if r.IsDir {
			b.WriteString(" dir")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// told is what is wanted of a backend: fsnotify knows neither closes nor moves into the tree.
func told(o Options, want string) string {
	if o.Backend != watcher.Portable {
		return want
	}
	var b strings.Builder
	for line := range strings.Lines(want) {
		if !strings.HasPrefix(line, "close_write") {
			b.WriteString(strings.Replace(line, "rename \"\" ->", "create", 1))
		}
	}
	return b.String()
}

// entries leaves only what makes, removes or moves a name.
func entriesOf(records []Record) []Record {
	var out []Record
	for _, r := range records {
		switch r.Type {
		case TypeCreate, TypeDelete, TypeRename, TypeExchange, TypeOverflow, TypeRescan:
			out = append(out, r)
		}
	}
	return out
}

type backend struct {
	name string
	o    Options
}

// kernelBackends hear of mounts, and of what the kernel has dropped without the help of a table.
var kernelBackends = []backend{
	{"fanotify", Options{Backend: "fanotify"}},
	{"inode-marks", Options{Backend: "fanotify", ForceInodeMarks: true}},
	{"inotify", Options{Backend: "inotify"}},
}

// backends are all ways to watch; each test runs with each, on each bed.
var backends = append(slices.Clip(kernelBackends), backend{"portable", Options{Backend: watcher.Portable}})

// each runs f with every backend on ext4 (or whatever the test directory is on) and on tmpfs.
func each(t *testing.T, f func(t *testing.T, o Options, dir string)) { eachOf(t, backends, f) }

func eachOf(t *testing.T, backends []backend, f func(t *testing.T, o Options, dir string)) {
	for _, b := range backends {
		t.Run(b.name+"/disk", func(t *testing.T) { f(t, b.o, t.TempDir()) })
		t.Run(b.name+"/tmpfs", func(t *testing.T) { f(t, b.o, tmpfs(t)) })
	}
}

func tmpfs(t *testing.T) string {
	t.Helper()
	testenv.Need(t, testenv.Root)
	dir := t.TempDir()
	must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte("x"), 0o600))
}

// mirror is the set of names that a stream of records leads to.
type mirror map[string]bool

// apply complains about what cannot be. late says that the backend may tell of a move out of a
// directory after the end of the directory itself.
func (m mirror) apply(t *testing.T, records []Record, late bool) {
	t.Helper()
	for _, r := range records {
		switch r.Type {
		case TypeCreate:
			if m[r.Path] {
				t.Errorf("told twice: %v", r)
			}
			m[r.Path] = true
		case TypeDelete:
			if !m[r.Path] {
				t.Errorf("deleted without a create: %v", r)
			}
			for name := range m.below(r.Path) {
				delete(m, name)
			}
		case TypeRename:
			m.rename(t, r, late)
		case TypeExchange:
			m.exchange(r)
		case TypeModify, TypeAttrib, TypeCloseWrite:
			if r.Path != "." && !m[r.Path] {
				t.Errorf("unknown path: %v", r)
			}
		}
	}
}

func (m mirror) rename(t *testing.T, r Record, late bool) {
	t.Helper()
	if r.OldPath != "" && !m[r.OldPath] && !(late && r.Path == "") {
		t.Errorf("renamed without a create: %v", r)
	}
	for name := range m.below(r.Path) {
		delete(m, name)
	}
	moved := m.below(r.OldPath)
	for name := range moved {
		delete(m, name)
	}
	if r.Path == "" {
		return
	}
	m[r.Path] = true
	for name := range moved {
		m[r.Path+strings.TrimPrefix(name, r.OldPath)] = true
	}
}

func (m mirror) exchange(r Record) {
	a, b := m.below(r.OldPath), m.below(r.Path)
	for name := range a {
		delete(m, name)
	}
	for name := range b {
		delete(m, name)
	}
	for name := range a {
		m[r.Path+strings.TrimPrefix(name, r.OldPath)] = true
	}
	for name := range b {
		m[r.OldPath+strings.TrimPrefix(name, r.Path)] = true
	}
}

func (m mirror) below(path string) map[string]bool {
	set := make(map[string]bool)
	if path == "" {
		return set
	}
	for name := range m {
		if name == path || strings.HasPrefix(name, path+"/") {
			set[name] = true
		}
	}
	return set
}

// onDisk lists all names below dir.
func onDisk(t *testing.T, dir string) mirror {
	t.Helper()
	m := make(mirror)
	var walk func(fd int, rel string)
	walk = func(fd int, rel string) {
		entries, err := list(fd)
		must(t, err)
		for _, e := range entries {
			path := join(rel, e.Name())
			m[path] = true
			if e.IsDir() {
				child, err := unix.Openat(fd, e.Name(), openFlags, 0)
				must(t, err)
				walk(child, path)
				unix.Close(child)
			}
		}
	}
	fd, err := unix.Open(dir, openFlags, 0)
	must(t, err)
	defer unix.Close(fd)
	walk(fd, "")
	return m
}

func (m mirror) diff(disk mirror) string {
	var b strings.Builder
	n := 0
	for name := range disk {
		if !m[name] && n < 20 {
			n++
			fmt.Fprintf(&b, "not told: %s\n", name)
		}
	}
	for name := range m {
		if !disk[name] && n < 20 {
			n++
			fmt.Fprintf(&b, "told, but not on disk: %s\n", name)
		}
	}
	return b.String()
}
