package passthrough

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// TestAnnounceSubmounts: what lies on another device is announced, and keeps its numbers.
func TestAnnounceSubmounts(t *testing.T) {
	testenv.Need(t, testenv.Root)
	src := t.TempDir()
	for _, d := range []string{"one", "two", "one/deep"} {
		must(t, os.MkdirAll(filepath.Join(src, d), 0o755))
	}
	mountAt(t, "tmpfs", src+"/one", "")
	mountAt(t, "tmpfs", src+"/two", "")
	must(t, os.Mkdir(src+"/one/deep", 0o755))
	mountAt(t, "tmpfs", src+"/one/deep", "")
	for _, f := range []string{"one/f", "two/f", "one/deep/f", "plain", "bound"} {
		must(t, os.WriteFile(filepath.Join(src, f), nil, 0o644))
	}
	must(t, unix.Mount(src+"/one/f", src+"/bound", "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(src+"/bound", 0)) })
	ino := func(path string) uint64 {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(src, path), &st))
		return st.Ino
	}
	for _, announce := range []bool{true, false} {
		t.Run(fmt.Sprint(announce), func(t *testing.T) {
			fs := newFS(t, src, Options{AnnounceSubmounts: announce})
			if got := fs.MountOptions().ExtraCapabilities&fuse.CAP_SUBMOUNTS != 0; got != announce {
				t.Errorf("FUSE_SUBMOUNTS is wanted: %v", got)
			}
			ids := map[string]uint64{"": 1}
			seen := map[uint64]string{}
			for _, c := range []struct {
				path     string
				submount bool
				foreign  bool // on another device than the root
			}{
				{"plain", false, false}, {"one", true, true}, {"one/f", false, true}, {"one/deep", true, true},
				{"one/deep/f", false, true}, {"two", true, true}, {"two/f", false, true}, {"bound", false, true},
			} {
				dir, name := filepath.Split(c.path)
				out := mustLookup(t, fs, ids[strings.TrimSuffix(dir, "/")], name)
				ids[c.path] = out.NodeId
				if got := out.Attr.Flags&fuse.ATTR_SUBMOUNT != 0; got != (c.submount && announce) {
					t.Errorf("%s is a submount: %v", c.path, got)
				}
				// A file on another device than its directory is no mount in the guest.
				same := !c.foreign || (announce && c.path != "bound")
				if got := out.Attr.Ino == ino(c.path); got != same {
					t.Errorf("%s has number %#x, on the host %#x", c.path, out.Attr.Ino, ino(c.path))
				}
				if other := seen[out.Attr.Ino]; !announce && other != "" && c.path != "bound" {
					t.Errorf("%s has the number of %s", c.path, other)
				}
				seen[out.Attr.Ino] = c.path
			}
		})
	}
}

// TestNodeLimit: who looks up without end and forgets nothing is stopped, and can go on when it has forgotten.
func TestNodeLimit(t *testing.T) {
	src := t.TempDir()
	for i := range 20 {
		must(t, os.WriteFile(fmt.Sprint(src, "/f", i), nil, 0o644))
	}
	var log bytes.Buffer
	fs := newFS(t, src, Options{NodeLimit: func() int { return 10 }, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	var ids []uint64
	for i := range 20 {
		out, status := lookup(fs, 1, fmt.Sprint("f", i))
		if status.Ok() {
			ids = append(ids, out.NodeId)
		} else if status != fuse.Status(unix.ENOMEM) {
			t.Fatalf("f%d: %v", i, status)
		}
	}
	if len(ids) != 9 { // and the root
		t.Errorf("%d nodes", len(ids))
	}
	if out, status := lookup(fs, 1, "f0"); !status.Ok() || out.NodeId != ids[0] {
		t.Errorf("a known file: %v", status)
	}
	fs.Forget(ids[1], 1)
	mustLookup(t, fs, 1, "f19")
	if n := strings.Count(log.String(), "too many files"); n != 1 {
		t.Errorf("it was logged %d times: %s", n, &log)
	}
}

// TestManyOpenDirectories: their listings are whole although most have no buffer.
func TestManyOpenDirectories(t *testing.T) {
	src := t.TempDir()
	const files = 300
	for i := range files {
		must(t, os.WriteFile(fmt.Sprint(src, "/f", i), nil, 0o644))
	}
	fs := newFS(t, src, Options{})
	for i := range maxBuffered + 10 {
		var out fuse.OpenOut
		if s := fs.OpenDir(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: 1}}, &out); !s.Ok() {
			t.Fatal(s)
		}
		if i < maxBuffered {
			continue
		}
		seen := map[string]bool{}
		// A page takes a part of them only.
		for off, end := uint64(0), false; !end; {
			list := fuse.NewDirEntryList(make([]byte, 4096), off)
			in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: 1}, Fh: out.Fh, Offset: off}
			end = true
			s := fs.readDir(in, func(st *stream, d *dirent) bool {
				e := st.entry(d)
				if !list.AddDirEntry(e) {
					return false
				}
				if seen[e.Name] {
					t.Errorf("%s twice", e.Name)
				}
				seen[e.Name], off, end = true, d.off, false
				return true
			})
			if !s.Ok() {
				t.Fatal(s)
			}
		}
		if len(seen) != files+2 {
			t.Errorf("%d entries", len(seen))
		}
		if s := fs.files.dirs[out.Fh]; s.buf != nil {
			t.Error("the buffer is kept")
		}
	}
}
