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
	object := func(path string) notify.Object {
		fd, err := unix.Open(path, openFlags, 0)
		must(t, err)
		defer unix.Close(fd)
		obj, _, err := sys.ObjectOf(fd)
		must(t, err)
		return obj
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	root := rootDir{obj: object(dir), fd: fd, path: dir}
	d := filepath.Join(dir, "d")
	must(t, os.Mkdir(d, 0o700))
	first := object(d)
	must(t, os.Remove(d))
	must(t, os.Mkdir(d, 0o700))
	write(t, filepath.Join(d, "f"))

	var got []Record
	e := newEngine(&disk{roots: []rootDir{root}}, nil, false, 0, slog.New(slog.DiscardHandler))
	e.emit = func(r Record) { got = append(got, r) }
	e.tab.addRoot(root.obj, 0, "")
	must(t, e.feed([]notify.Event{
		{Op: notify.OpCreate, IsDir: true, Dir: root.obj, Name: "d", Object: first},
		{Op: notify.OpCreate, Dir: first, Name: "f"},
		{Op: notify.OpDelete, Dir: first, Name: "f", Verify: true},
	}))
	e.arm()
	must(t, e.passed())
	if e.waiting() {
		t.Error("it waits")
	}
	wantLines(t, got, "create \"d\" dir\ncreate \"d/f\"\ndelete \"d/f\"\n")
}
