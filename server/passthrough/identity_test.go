package passthrough

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
)

type fuseAttr = fuse.Attr

func newFS(t testing.TB, src string, opts Options) *FS {
	t.Helper()
	fs, err := New(src, opts)
	must(t, err)
	t.Cleanup(func() { fs.Close() })
	return fs
}

func lookup(fs *FS, parent uint64, name string) (out fuse.EntryOut, status fuse.Status) {
	status = fs.Lookup(nil, &fuse.InHeader{NodeId: parent}, name, &out)
	return out, status
}

func mustLookup(t testing.TB, fs *FS, parent uint64, name string) fuse.EntryOut {
	t.Helper()
	out, status := lookup(fs, parent, name)
	if !status.Ok() {
		t.Fatalf("lookup %d/%s: %v", parent, name, status)
	}
	return out
}

func mustObject(fs *FS, id uint64) notify.Object {
	obj, _ := fs.Object(id)
	return obj
}

func objectAt(t testing.TB, path string) notify.Object {
	t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	obj, _, err := sys.ObjectOf(fd)
	must(t, err)
	return obj
}

// TestRecycledInode makes ext4 give a new file the number of an old one that the guest knows.
func TestRecycledInode(t *testing.T) {
	src := testenv.Ext4(t)
	path := filepath.Join(src, "f")
	fs := newFS(t, src, Options{FileHandles: HandleMandatory})
	must(t, os.WriteFile(path, []byte("old"), 0o644))
	old := mustLookup(t, fs, rootID, "f")
	oldObj := mustObject(fs, old.NodeId)
	var fresh fuse.EntryOut
	recycled := false
	for range 1000 {
		must(t, os.Remove(path))
		must(t, os.WriteFile(path, []byte("newer"), 0o600))
		fresh = mustLookup(t, fs, rootID, "f")
		if fresh.Ino == old.Ino {
			recycled = true
			break
		}
	}
	if !recycled {
		t.Fatal("no inode number was recycled")
	}
	if fresh.NodeId == old.NodeId {
		t.Fatal("a recycled inode number was taken for the old file")
	}
	var a fuse.Attr
	if status := fs.Attr(old.NodeId, &a); status != fuse.Status(unix.ESTALE) {
		t.Errorf("attributes of the old file: %v %+v", status, a)
	}
	if status := fs.Attr(fresh.NodeId, &a); !status.Ok() || a.Size != 5 {
		t.Errorf("attributes of the new file: %v %+v", status, a)
	}
	var out fuse.EntryOut
	if status := fs.Obtain(oldObj, rootID, "f", &out); status != fuse.ENOENT {
		t.Errorf("the old file was obtained: %v %+v", status, out)
	}
}

func TestNodeIDLifetime(t *testing.T) {
	for _, mode := range []HandleMode{HandlePrefer, HandleNever} {
		t.Run(mode.String(), func(t *testing.T) {
			src := t.TempDir()
			must(t, os.WriteFile(src+"/a", nil, 0o644))
			must(t, os.Link(src+"/a", src+"/b"))
			fs := newFS(t, src, Options{FileHandles: mode})
			obj := objectAt(t, src+"/a")
			if ids := fs.NodeIDs(nil, obj); len(ids) != 0 {
				t.Fatalf("known before the first lookup: %v", ids)
			}
			a, b := mustLookup(t, fs, rootID, "a"), mustLookup(t, fs, rootID, "b")
			if a.NodeId != b.NodeId || a.NodeId <= rootID {
				t.Fatalf("hard links have nodeids %d and %d", a.NodeId, b.NodeId)
			}
			fs.Forget(a.NodeId, 1)
			if ids := fs.NodeIDs(nil, obj); len(ids) != 1 || ids[0] != a.NodeId {
				t.Fatalf("after one of two forgets: %v", ids)
			}
			fs.Forget(a.NodeId, 1)
			if ids := fs.NodeIDs(nil, obj); len(ids) != 0 {
				t.Fatalf("after the last forget: %v", ids)
			}
			if _, ok := fs.Object(a.NodeId); ok {
				t.Fatal("a forgotten nodeid has an object")
			}
			if again := mustLookup(t, fs, rootID, "a"); again.NodeId == a.NodeId {
				t.Fatal("a nodeid was used again")
			}
			if ids := fs.NodeIDs(nil, objectAt(t, src)); len(ids) != 1 || ids[0] != rootID {
				t.Fatalf("the root: %v", ids)
			}
		})
	}
}

func TestObtain(t *testing.T) {
	for _, mode := range []HandleMode{HandlePrefer, HandleNever} {
		t.Run(mode.String(), func(t *testing.T) {
			src := t.TempDir()
			fs := newFS(t, src, Options{FileHandles: mode, EntryTimeout: time.Minute, AttrTimeout: time.Hour})
			must(t, os.Mkdir(src+"/d", 0o755))
			must(t, os.WriteFile(src+"/d/f", []byte("x"), 0o644))
			d := mustLookup(t, fs, rootID, "d")
			obj := objectAt(t, src+"/d/f")
			var out fuse.EntryOut
			if status := fs.Obtain(obj, d.NodeId, "f", &out); !status.Ok() || out.Size != 1 || out.EntryTimeout() != time.Minute || out.AttrTimeout() != time.Hour {
				t.Fatalf("%v %+v", status, out)
			}
			// Renamed: it is found although the name is gone.
			must(t, os.Rename(src+"/d/f", src+"/g"))
			var again fuse.EntryOut
			if status := fs.Obtain(obj, d.NodeId, "f", &again); !status.Ok() || again.NodeId != out.NodeId {
				t.Fatalf("%v %+v", status, again)
			}
			// Another object under the name is not it.
			must(t, os.WriteFile(src+"/d/f", nil, 0o644))
			other := objectAt(t, src+"/d/f")
			fs.Forget(out.NodeId, 2)
			must(t, os.Remove(src+"/g"))
			if status := fs.Obtain(obj, d.NodeId, "f", &again); status != fuse.ENOENT {
				t.Fatalf("a removed object was obtained: %v", status)
			}
			if ids := fs.NodeIDs(nil, other); len(ids) != 0 {
				t.Fatalf("a lookup count was left behind: %v", ids)
			}
			if status := fs.Obtain(notify.Object{}, d.NodeId, "f", &again); !status.Ok() || mustObject(fs, again.NodeId) != other {
				t.Fatalf("by name: %v", status)
			}
			if status := fs.Obtain(notify.Object{}, d.NodeId, "nope", &again); status != fuse.ENOENT {
				t.Fatalf("a missing name: %v", status)
			}
		})
	}
}

func TestLocate(t *testing.T) {
	base := t.TempDir()
	src := sub(t, base)
	must(t, os.MkdirAll(src+"/a/b", 0o755))
	must(t, os.Mkdir(src+"/c", 0o755))
	for _, mode := range []HandleMode{HandlePrefer, HandleNever} {
		fs := newFS(t, src, Options{FileHandles: mode})
		b := objectAt(t, src+"/a/b")
		if mode == HandleNever {
			if _, _, err := fs.Locate(b); !errors.Is(err, notify.ErrNotSupported) {
				t.Fatalf("an unknown directory without handles: %v", err)
			}
			a := mustLookup(t, fs, rootID, "a")
			mustLookup(t, fs, a.NodeId, "b")
		}
		check := func(wantParent, wantName string) {
			t.Helper()
			parent, name, err := fs.Locate(b)
			if err != nil || parent != objectAt(t, wantParent) || name != wantName {
				t.Fatalf("%v/%q, %v", parent, name, err)
			}
		}
		check(src+"/a", "b")
		must(t, os.Rename(src+"/a/b", src+"/new"))
		check(src, "new")
		must(t, os.Rename(src+"/new", src+"/c/x (deleted)"))
		check(src+"/c", "x (deleted)")
		must(t, os.Rename(src+"/c/x (deleted)", base+"/out"))
		if _, _, err := fs.Locate(b); !errors.Is(err, ErrOutside) {
			t.Fatalf("moved out: %v", err)
		}
		must(t, os.Rename(base+"/out", src+"/a/b"))
		if _, _, err := fs.Locate(objectAt(t, src)); !errors.Is(err, ErrOutside) {
			t.Fatalf("the root: %v", err)
		}
	}
	fs := newFS(t, src, Options{})
	b := objectAt(t, src+"/a/b")
	must(t, os.Remove(src+"/a/b"))
	if _, _, err := fs.Locate(b); !errors.Is(err, unix.ESTALE) {
		t.Fatalf("removed: %v", err)
	}
}

// TestSubmounts: lookups cross mount points, equal inode numbers are told apart, and one
// object seen through two mounts has two nodeids.
func TestSubmounts(t *testing.T) {
	for _, mode := range []HandleMode{HandlePrefer, HandleNever} {
		t.Run(mode.String(), func(t *testing.T) {
			src := testenv.Tmpfs(t)
			for _, d := range []string{"one", "two", "bind"} {
				must(t, os.Mkdir(filepath.Join(src, d), 0o755))
			}
			mountAt(t, "tmpfs", src+"/one", "")
			mountAt(t, "tmpfs", src+"/two", "")
			must(t, unix.Mount(src+"/one", src+"/bind", "", unix.MS_BIND, ""))
			t.Cleanup(func() { unix.Unmount(src+"/bind", 0) })
			must(t, os.WriteFile(src+"/one/f", []byte("1"), 0o644))
			must(t, os.WriteFile(src+"/two/f", []byte("2"), 0o644))
			mnt, fs := mountPassthrough(t, src, Options{FileHandles: mode})
			inos := map[uint64]string{}
			for _, p := range []string{"one", "one/f", "two", "two/f"} {
				var st unix.Stat_t
				must(t, unix.Stat(filepath.Join(mnt, p), &st))
				if other := inos[st.Ino]; other != "" {
					t.Errorf("%s and %s share st_ino %d", p, other, st.Ino)
				}
				inos[st.Ino] = p
			}
			for p, want := range map[string]string{"one/f": "1", "two/f": "2", "bind/f": "1"} {
				if got, err := os.ReadFile(filepath.Join(mnt, p)); err != nil || string(got) != want {
					t.Errorf("%s: %q, %v", p, got, err)
				}
			}
			if ids := fs.NodeIDs(nil, objectAt(t, src+"/one/f")); len(ids) != 2 {
				t.Errorf("nodeids through two mounts: %v", ids)
			}
			if err := os.Rename(mnt+"/one/f", mnt+"/two/g"); !errors.Is(err, unix.EXDEV) {
				t.Errorf("rename between mounts: %v", err)
			}
		})
	}
}

// TestHandlesThatCannotBeOpened: overlayfs gives handles that only identify.
func TestHandlesThatCannotBeOpened(t *testing.T) {
	base := testenv.Tmpfs(t)
	for _, d := range []string{"l", "u", "w", "m"} {
		must(t, os.Mkdir(filepath.Join(base, d), 0o755))
	}
	mountAt(t, "overlay", base+"/m", "nfs_export=off,lowerdir="+base+"/l,upperdir="+base+"/u,workdir="+base+"/w")
	if _, err := New(base+"/m", Options{FileHandles: HandleMandatory}); !errors.Is(err, notify.ErrNotSupported) {
		t.Fatalf("mandatory handles: %v", err)
	}
	mnt, fs := mountPassthrough(t, base+"/m", Options{})
	must(t, os.WriteFile(mnt+"/f", []byte("x"), 0o644))
	obj := objectAt(t, base+"/m/f")
	if ids := fs.NodeIDs(nil, obj); len(ids) != 1 || obj.Type == notify.TypeInode {
		t.Fatalf("%v: %v", obj, ids)
	}
	must(t, os.Rename(base+"/m/f", base+"/m/g"))
	var out fuse.EntryOut
	if status := fs.Obtain(obj, rootID, "f", &out); !status.Ok() {
		t.Fatal(status)
	}
	fs.Forget(out.NodeId, 1)
}

// TestOwnMountBelowSource: entering it would wait for ourselves.
func TestOwnMountBelowSource(t *testing.T) {
	src := t.TempDir()
	must(t, os.Mkdir(src+"/m", 0o755))
	fs, err := New(src, Options{})
	must(t, err)
	defer fs.Close()
	mo := fs.MountOptions()
	mo.DirectMountStrict = true
	srv, err := fuse.NewServer(fs, src+"/m", &mo)
	must(t, err)
	go srv.Serve()
	must(t, srv.WaitMount())
	defer srv.Unmount()
	fd, err := unix.Open(src+"/m", unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	_, dev, err := sys.MountOf(fd)
	unix.Close(fd)
	must(t, err)
	fs.Exclude(dev)
	if _, err := os.Lstat(src + "/m/m"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("the mount in the mount: %v", err)
	}
}

// TestHandleThatAppeared: an object that had no handle when it became known is found, by the
// number that its descriptor keeps, when it has one.
func TestHandleThatAppeared(t *testing.T) {
	src := t.TempDir()
	must(t, os.WriteFile(src+"/f", nil, 0o644))
	fs := newFS(t, src, Options{})
	pin, err := unix.Open(src+"/f", unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Fstat(pin, &st))
	if !fs.root.dev.mnt.acquire() {
		t.Fatal("the root's mount is gone")
	}
	fresh := newNode(fs.root.dev, unix.S_IFREG, notify.TypeInode, []byte(sys.InodeObject(fs.root.dev.fsid, st.Ino, st.Dev).Handle))
	fresh.holdLocked().pin = sys.NewFD(pin)
	numbered, _ := fs.nodes.insert(fresh)
	if out := mustLookup(t, fs, rootID, "f"); out.NodeId != numbered.id {
		t.Errorf("nodeid %d, was known as %d", out.NodeId, numbered.id)
	}
	fs.Forget(numbered.id, 2)
	if out := mustLookup(t, fs, rootID, "f"); mustObject(fs, out.NodeId) != objectAt(t, src+"/f") {
		t.Errorf("after forget: %v", mustObject(fs, out.NodeId))
	}
}

// TestOverFUSE: a FUSE file system's handles die with its cache, so nodes hold descriptors.
func TestOverFUSE(t *testing.T) {
	src := t.TempDir()
	must(t, os.Mkdir(src+"/d", 0o755))
	must(t, os.WriteFile(src+"/d/f", []byte("x"), 0o644))
	lower, _ := mountPassthrough(t, src, Options{})
	fs := newFS(t, lower, Options{})
	d := mustLookup(t, fs, rootID, "d")
	f := mustLookup(t, fs, d.NodeId, "f")
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	must(t, writeNode(fs, f.NodeId))
	if data, err := os.ReadFile(src + "/d/f"); string(data) != "y" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := New(lower, Options{FileHandles: HandleMandatory}); !errors.Is(err, notify.ErrNotSupported) {
		t.Errorf("mandatory handles: %v", err)
	}
}
