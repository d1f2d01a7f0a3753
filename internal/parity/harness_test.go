package parity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/inotest"
	"github.com/heraldfs/heraldfs/internal/opgen"
	"github.com/heraldfs/heraldfs/internal/testenv"
)

func TestMain(m *testing.M) { testenv.LeakMain(m) }

// program is the program under test, built once below the temporary directory of the run.
var program = sync.OnceValues(func() (string, error) {
	path := filepath.Join(os.TempDir(), "heraldfs")
	out, err := exec.Command("go", "build", "-o", path, "github.com/heraldfs/heraldfs/cmd/heraldfs").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build heraldfs: %w\n%s", err, out)
	}
	return path, nil
})

// bed is a host directory and a mount of it.
type bed struct {
	t       *testing.T
	host    string
	outside string
	mnt     string
	gen     *opgen.Generator
	native  *inotest.Recorder
	guest   *inotest.Recorder
	fences  int
	backend string
	share   string
	procs   procs

	heardNative, heardGuest []inotest.Record
}

// static are the directories that are watched on both sides from the start.
var static = []string{"a", "a/deep", "b", "c"}

// newBed mounts a directory of the file system at base.
func newBed(t *testing.T, base, backend string, seed uint64, pace time.Duration, kinds []opgen.Kind) *bed {
	t.Helper()
	return newShareBed(t, "", base, backend, seed, pace, kinds)
}

// newShareBed is newBed over a share, see shares; "" is none.
func newShareBed(t *testing.T, share, base, backend string, seed uint64, pace time.Duration, kinds []opgen.Kind) *bed {
	t.Helper()
	b := &bed{share: share, t: t, host: filepath.Join(base, "host"), outside: filepath.Join(base, "outside"), mnt: t.TempDir(), backend: backend}
	for _, dir := range []string{b.host, b.outside} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	b.gen, err = opgen.New(opgen.Options{Root: b.host, Outside: b.outside, Seed: seed, Static: static, Pace: pace, Kinds: kinds})
	if err != nil {
		t.Fatal(err)
	}
	b.mount(backend)
	if _, err := b.gen.Run(context.Background(), 80, nil); err != nil {
		t.Fatal(err)
	}
	b.sync()
	b.native, b.guest = inotest.New(t, inotest.Options{}), inotest.New(t, inotest.Options{})
	for _, dir := range b.gen.Static() {
		b.watch(dir)
	}
	// Files that exist now are watched themselves, for DELETE_SELF and MOVE_SELF.
	watched, names := map[int]bool{}, map[int]int{}
	for _, e := range b.gen.Tree() {
		names[e.File]++
	}
	for path, e := range b.gen.Tree() {
		if b.share == "cached" && names[e.File] > 1 {
			// Of a name that the guest has not looked up, and that nothing has happened to since, nobody knows over a
			// share that it is a link to this file: its removal is no ATTRIB on the file's own watch.
			continue
		}
		if e.Mode.IsRegular() && !watched[e.File] && len(watched) < 24 {
			watched[e.File] = true
			b.watch(path)
		}
	}
	return b
}

func (b *bed) watch(rel string) {
	b.t.Helper()
	b.native.Watch(filepath.Join(b.host, rel), rel, 0)
	b.guest.Watch(filepath.Join(b.mnt, rel), rel, 0)
}

// mount runs the program until the test ends.
func (b *bed) mount(backend string) {
	b.t.Helper()
	binary, err := program()
	if err != nil {
		b.t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		b.t.Fatal(err)
	}
	defer r.Close()
	var log strings.Builder
	if strings.Contains(backend, "--io-uring=on") {
		testenv.SwitchOnIOURing(b.t)
	}
	args := append([]string{"mount", "--log-level=warn"}, strings.Fields("--watcher="+backend)...)
	cmd := exec.Command(binary, append(args, b.host, b.mnt)...)
	if b.share != "" {
		url, source := b.serve(binary)
		cmd = exec.Command(binary, "mount", "--events", url, "--log-level=warn", source, b.mnt)
	}
	cmd.Stderr = &log
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = append(os.Environ(), "HERALDFS_READY_FD=3")
	err = cmd.Start()
	w.Close()
	if err != nil {
		b.t.Fatal(err)
	}
	b.started(cmd)
	said, _ := io.ReadAll(r)
	if strings.TrimSpace(string(said)) != "ready" {
		cmd.Wait()
		b.t.Fatalf("mount: %s", said)
	}
	b.t.Cleanup(func() {
		for _, rec := range []*inotest.Recorder{b.native, b.guest} {
			if rec != nil {
				rec.Close()
			}
		}
		b.stop(cmd)
		// EINVAL: it has unmounted, as it should. Else it was killed.
		_ = unix.Unmount(b.mnt, unix.MNT_DETACH)
		if log.Len() > 0 {
			b.t.Logf("mount said:\n%s", log.String())
		}
	})
}

// sync waits as `heraldfs sync` does.
func (b *bed) sync() {
	b.t.Helper()
	var buf [16]byte
	for {
		_, err := unix.Getxattr(b.mnt, "user.heraldfs.sync", buf[:])
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EINTR) {
			b.t.Fatalf("sync: %v", err)
		}
	}
}

// fence makes a change that both sides hear of last, and takes what they heard before.
func (b *bed) fence() {
	b.t.Helper()
	if b.backend == "inotify" {
		// A move out of the tree is known to be one only after a short wait,
		// which holds up its own directory and not the fence's.
		b.sync()
	}
	b.fences++
	name := fmt.Sprintf("fence-%d", b.fences)
	path := filepath.Join(b.host, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		b.t.Fatal(err)
	}
	b.heardNative = add(b.heardNative, b.native.WaitFor(name))
	b.heardGuest = add(b.heardGuest, b.guest.WaitFor(name))
	if err := os.Remove(path); err != nil {
		b.t.Fatal(err)
	}
}

// add appends a recording, which numbers its cookies from 1.
func add(all, more []inotest.Record) []inotest.Record {
	var last uint32
	for _, r := range all {
		last = max(last, r.Cookie)
	}
	for _, r := range more {
		if r.Cookie != 0 {
			r.Cookie += last
		}
		all = append(all, r)
	}
	return all
}

// fresh compares what the guest reads at a path with what must be there.
func (b *bed) fresh(op opgen.Op, rel string) error {
	if rel == "" || filepath.IsAbs(rel) {
		return nil
	}
	want, ok := b.gen.Lookup(rel)
	path := filepath.Join(b.mnt, rel)
	st, err := os.Lstat(path)
	switch {
	case !ok && err == nil:
		return fmt.Errorf("after %v: %s is there in the guest", op, rel)
	case !ok:
		return nil
	case err != nil:
		return fmt.Errorf("after %v: %w", op, err)
	case st.Mode().Type() != want.Mode.Type():
		return fmt.Errorf("after %v: %s is %v in the guest, must be %v", op, rel, st.Mode(), want.Mode)
	case !want.Mode.IsRegular():
		return nil
	case st.Mode().Perm() != want.Mode.Perm():
		return fmt.Errorf("after %v: %s has mode %v in the guest, must be %v", op, rel, st.Mode(), want.Mode)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("after %v: %w", op, err)
	}
	if string(got) != string(want.Content) {
		return fmt.Errorf("stale read after %v: %s has %d bytes %.20q in the guest, must be %d bytes %.20q",
			op, rel, len(got), got, len(want.Content), want.Content)
	}
	return nil
}

// equalTrees compares the whole tree.
func (b *bed) equalTrees() {
	b.t.Helper()
	for rel := range b.gen.Tree() {
		if err := b.fresh(opgen.Op{}, rel); err != nil {
			b.t.Error(err)
		}
	}
}
