package guest

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/inotest"
	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/fusenotify"
	"github.com/heraldfs/heraldfs/server/fusedev"
	"github.com/heraldfs/heraldfs/server/passthrough"
	"github.com/heraldfs/heraldfs/watcher"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestMaxNodes: what is not in use is forgotten, and what is, works.
func TestMaxNodes(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE, testenv.Fanotify)
	const dirs, perDir, most = 20, 1000, 2000
	host, mnt := t.TempDir(), t.TempDir()
	if err := unix.Mount("tmpfs", host, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(host, unix.MNT_DETACH) })
	path := func(root string, d, f int) string {
		return filepath.Join(root, strconv.Itoa(d), "f"+strconv.Itoa(f))
	}
	for d := range dirs {
		must(t, os.Mkdir(filepath.Join(host, strconv.Itoa(d)), 0o755))
		for f := range perDir {
			must(t, os.WriteFile(path(host, d, f), []byte("old"), 0o644))
		}
	}
	w, err := watcher.Open(watcher.Options{Root: host, Backend: watcher.Fanotify, Mask: notify.DefaultMask, DropPid: os.Getpid()})
	must(t, err)
	g, err := Mount(Options{Source: host, Mountpoint: mnt, Events: w, Marker: w.Marker, MaxNodes: most, Logger: slog.New(slog.DiscardHandler),
		Device: fusedev.Options{AllowOther: true, DefaultPermissions: true}})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
	})
	<-g.Ready()

	rec := inotest.New(t, inotest.Options{})
	defer rec.Close()
	rec.Watch(path(mnt, 0, 0), "watched", notify.Modify|notify.Attrib)
	rec.Watch(mnt, "", notify.Create)
	open, err := os.Open(path(mnt, 1, 1))
	must(t, err)
	defer open.Close()
	at, err := unix.Open(filepath.Join(mnt, "2"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(at)
	must(t, filepath.WalkDir(mnt, func(path string, e os.DirEntry, err error) error {
		if err == nil {
			_, err = e.Info()
		}
		return err
	}))
	deadline := time.Now().Add(patience)
	for g.fs.Nodes() > most && time.Now().Before(deadline) && !g.conn.Notify().Missing(fusenotify.CodePrune) {
		time.Sleep(time.Millisecond)
	}
	if !g.conn.Notify().Missing(fusenotify.CodePrune) { // of Linux 6.18
		if n := g.fs.Nodes(); n > most {
			t.Errorf("%d nodes are known, at most %d", n, most)
		}
		if n := g.Pruned(); n < dirs*perDir-2*most {
			t.Errorf("%d inodes were pruned", n)
		}
	}

	// The host is another process: what this one does is taken for the guest's.
	for _, name := range []string{path(host, 0, 0), path(host, 1, 1), path(host, 2, 2), path(host, 3, 3)} {
		must(t, exec.Command("sh", "-c", "printf new > "+name).Run())
	}
	must(t, exec.Command("touch", filepath.Join(host, "fence")).Run())
	var heard []string
	for _, r := range rec.WaitFor("fence") {
		heard = append(heard, r.String())
	}
	if !strings.Contains(strings.Join(heard, "\n"), "watched") {
		t.Errorf("of the watched file was heard %q", heard)
	}
	if data, err := io.ReadAll(open); err != nil || string(data) != "new" {
		t.Errorf("the open file has %q, %v", data, err)
	}
	fd, err := unix.Openat(at, "f2", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	in := sys.NewFD(fd)
	defer in.Release()
	for _, name := range []string{sys.ProcPath(fd), path(mnt, 3, 3)} {
		if data, err := os.ReadFile(name); err != nil || string(data) != "new" {
			t.Errorf("%s has %q, %v", name, data, err)
		}
	}
}

// TestBoundRests: when all is in use it asks once for each file and rests, warns once, and a kernel that cannot
// be asked ends it.
func TestBoundRests(t *testing.T) {
	const files = 10
	dir := t.TempDir()
	fs, err := passthrough.New(dir, passthrough.Options{})
	must(t, err)
	defer fs.Close()
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	asked := 0
	var answer error
	b := &bound{max: 2, fs: fs, crowded: fs.Crowded(2), log: slog.New(slog.NewTextHandler(&log, nil))}
	b.prune = func(ids ...uint64) error {
		if asked += len(ids); asked >= files {
			cancel()
		}
		return answer
	}
	for i := range files {
		name := strconv.Itoa(i)
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
		var out fuse.EntryOut
		if st := fs.Lookup(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, name, &out); !st.Ok() {
			t.Fatal(st)
		}
	}
	b.run(ctx)
	if asked != files || strings.Count(log.String(), "more files than the bound") != 1 {
		t.Errorf("asked for %d, logged %q", asked, &log)
	}
	answer = notify.ErrNotSupported
	b.run(context.Background())
	if !strings.Contains(log.String(), "not bounded") {
		t.Errorf("logged %q", &log)
	}
}
