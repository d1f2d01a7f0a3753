package passthrough

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// manyFiles runs in a process of its own with few descriptors. The lookups are made by calling
// the file system: the guest's kernel would have to be asked not to forget.
func manyFiles(src string) error {
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 256, Max: 256}); err != nil {
		return err
	}
	fs, err := New(src, Options{FileHandles: HandleMandatory})
	if err != nil {
		return err
	}
	defer fs.Close()
	var known int
	for d := range 300 {
		dir, status := lookup(fs, rootID, fmt.Sprint("d", d))
		if !status.Ok() {
			return fmt.Errorf("lookup d%d: %v", d, status)
		}
		for f := range 100 {
			out, status := lookup(fs, dir.NodeId, fmt.Sprint("f", f))
			if !status.Ok() {
				return fmt.Errorf("lookup d%d/f%d: %v", d, f, status)
			}
			known++
			if ids := fs.NodeIDs(nil, mustObject(fs, out.NodeId)); len(ids) != 1 || ids[0] != out.NodeId {
				return fmt.Errorf("d%d/f%d: nodeid %d, found %v", d, f, out.NodeId, ids)
			}
		}
	}
	if n := countFDs(); n > 200 {
		return fmt.Errorf("%d descriptors for %d known files", n, known)
	}
	// Nothing was evicted that cannot be found again.
	for d := range 300 {
		dir, _ := lookup(fs, rootID, fmt.Sprint("d", d))
		var a fuseAttr
		if status := fs.Attr(dir.NodeId, &a); !status.Ok() || a.Nlink != 2 {
			return fmt.Errorf("d%d: %v, %+v", d, status, a)
		}
	}
	fmt.Println(known, "known")
	return nil
}

func TestManyKnownFiles(t *testing.T) {
	src := testenv.Tmpfs(t)
	for d := range 300 {
		dir := filepath.Join(src, fmt.Sprint("d", d))
		must(t, os.Mkdir(dir, 0o755))
		for f := range 100 {
			must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("f", f)), nil, 0o644))
		}
	}
	h := startHelper(t, "manyfiles", src)
	if got := h.line(t); got != "30000 known" {
		t.Fatal(got)
	}
	h.finish(t)
}

// TestForgetReturnsDescriptors mounts, walks and drops caches: the node table has to become empty.
func TestForgetReturnsDescriptors(t *testing.T) {
	for _, mode := range []HandleMode{HandlePrefer, HandleNever} {
		t.Run(mode.String(), func(t *testing.T) {
			src := t.TempDir()
			for i := range 200 {
				must(t, os.Mkdir(filepath.Join(src, fmt.Sprint("d", i)), 0o755))
				must(t, os.WriteFile(filepath.Join(src, fmt.Sprint("d", i), "f"), nil, 0o644))
			}
			before := openFDs(t)
			mnt, fs := mountPassthrough(t, src, Options{FileHandles: mode, NoOpendir: true})
			dump(t, mnt)
			known := fs.nodes.len
			if n := known(); n != 401 {
				t.Fatalf("%d nodes known, want 401", n)
			}
			deadline := time.Now().Add(20 * time.Second)
			for known() > 1 && time.Now().Before(deadline) {
				must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
			}
			if n := known(); n > 1 {
				t.Fatalf("%d nodes known after everything was forgotten", n)
			}
			if n := openFDs(t); n > before+30 {
				t.Errorf("%d descriptors, %d before", n, before)
			}
		})
	}
}
