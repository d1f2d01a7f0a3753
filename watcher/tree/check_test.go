//go:build linux

package tree

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// TestCheckOfReplacedDirectory has a look at the disk come so late that another directory has the path of the
// one that was meant. What is in that one says nothing.
func TestCheckOfReplacedDirectory(t *testing.T) {
	dir := tmpfs(t)
	e, got := engineOn(t, dir)
	d := filepath.Join(dir, "d")
	must(t, os.Mkdir(d, 0o700))
	root, first := objectOf(t, dir), objectOf(t, d)
	must(t, os.Remove(d))
	must(t, os.Mkdir(d, 0o700))
	write(t, filepath.Join(d, "f"))

	must(t, e.feed([]notify.Event{
		{Op: notify.OpCreate, IsDir: true, Dir: root, Name: "d", Object: first},
		{Op: notify.OpCreate, Dir: first, Name: "f"},
		{Op: notify.OpDelete, Dir: first, Name: "f", Verify: true},
	}))
	e.arm()
	must(t, e.passed())
	if e.waiting() {
		t.Error("it waits")
	}
	wantLines(t, *got, "create \"d\" dir\ncreate \"d/f\"\ndelete \"d/f\"\n")
}

// TestLookedUpBeforeItsCreate looks a directory up, as the parent of another one, before its CREATE was read. Until
// that is told, the directory that had the path before keeps it.
func TestLookedUpBeforeItsCreate(t *testing.T) {
	dir := tmpfs(t)
	e, got := engineOn(t, dir)
	d, x := filepath.Join(dir, "d"), filepath.Join(dir, "x")
	must(t, os.Mkdir(d, 0o700))
	must(t, os.Mkdir(x, 0o700))
	root, first, moved := objectOf(t, dir), objectOf(t, d), objectOf(t, x)
	must(t, os.Remove(d))
	must(t, os.Mkdir(d, 0o700))
	second := objectOf(t, d)
	must(t, os.Rename(x, filepath.Join(d, "x")))

	must(t, e.feed([]notify.Event{
		{Op: notify.OpCreate, IsDir: true, Dir: root, Name: "d", Object: first},
		{Op: notify.OpCreate, Dir: moved, Name: "f"},
	}))
	e.arm()
	must(t, e.feed([]notify.Event{
		{Op: notify.OpCreate, Dir: first, Name: "g"},
		{Op: notify.OpDelete, Dir: first, Name: "g"},
		{Op: notify.OpDelete, IsDir: true, Dir: root, Name: "d", Object: first},
		{Op: notify.OpCreate, IsDir: true, Dir: root, Name: "d", Object: second},
		{Op: notify.OpRename, IsDir: true, Dir: root, Name: "x", NewDir: second, NewName: "x", Object: moved},
		{Op: notify.OpDelete, Dir: moved, Name: "f"},
	}))
	must(t, e.passed())
	if e.waiting() {
		t.Error("it waits")
	}
	wantLines(t, *got, `create "d" dir
create "x/f"
create "d/g"
delete "d/g"
delete "d" dir
create "d" dir
rename "x" -> "d/x" dir
delete "d/x/f"
`)
}

// engineOn is an engine with a filesystem mark that a test feeds itself, and what it has told.
func engineOn(t *testing.T, dir string) (*engine, *[]Record) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Close(fd)) })
	e := newEngine(&disk{roots: []rootDir{{obj: objectOf(t, dir), fd: fd, path: dir}}}, nil, false, 0, slog.New(slog.DiscardHandler))
	got := new([]Record)
	e.emit = func(r Record) { *got = append(*got, r) }
	e.tab.addRoot(objectOf(t, dir), 0, "")
	return e, got
}

func objectOf(t *testing.T, path string) notify.Object {
	t.Helper()
	fd, err := unix.Open(path, openFlags, 0)
	must(t, err)
	defer unix.Close(fd)
	obj, _, err := sys.ObjectOf(fd)
	must(t, err)
	return obj
}
