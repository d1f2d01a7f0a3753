//go:build linux

package watcher_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher"
)

// await takes batches until one has an event that match likes.
func (b *bed) await(what string, match func(notify.Event) bool) notify.Event {
	b.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case evs := <-b.events:
			for _, ev := range evs {
				if match(ev) {
					return ev
				}
			}
		case <-deadline:
			b.t.Fatalf("no %s within %v", what, patience)
		}
	}
}

// TestSubmounts has one mount from the start and one that comes and goes later.
func TestSubmounts(t *testing.T) {
	needRoot(t)
	for _, be := range backends {
		t.Run(be.name, func(t *testing.T) {
			base := mountAt(t, "heraldfs-test", "tmpfs", "")
			early, late := filepath.Join(base, "tree/early"), filepath.Join(base, "tree/late")
			for _, d := range []string{early, late} {
				if err := os.MkdirAll(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			mountOn(t, early, "heraldfs-test", "tmpfs", "")
			b := newBed(t, base, be.opts)
			root := b.mark(".")
			b.mark("early")
			b.do("create early/f")
			if got := b.tell(b.fence()); len(got) != 1 || got[0] != "create early/f" {
				t.Errorf("in the early mount: %q", got)
			}

			if err := unix.Mount("heraldfs-test", late, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			isOp := func(op notify.Op) func(notify.Event) bool {
				return func(ev notify.Event) bool { return ev.Op == op }
			}
			ev := b.await("mount event", isOp(notify.OpMount))
			if ev.Dir != root || ev.Name != "late" || ev.Seq == 0 {
				t.Errorf("mount event %v, want it in %v", ev, root)
			}
			o := b.mark("late")
			b.do("create late/f")
			if got := b.tell(b.fence()); len(got) != 1 || got[0] != "create late/f" {
				t.Errorf("in the late mount: %q", got)
			}
			delete(b.dirs, o)
			// Neither marks nor descriptors of ours may keep the mount busy.
			if err := unix.Unmount(late, 0); err != nil {
				t.Fatalf("unmount: %v", err)
			}
			ev = b.await("unmount event", isOp(notify.OpUnmount))
			if ev.Dir != root || ev.Name != "late" {
				t.Errorf("unmount event %v", ev)
			}

			elsewhere := t.TempDir()
			mountOn(t, elsewhere, "heraldfs-test", "tmpfs", "")
			if got := b.fence(); len(filter(got, isOp(notify.OpMount))) != 0 {
				t.Errorf("a mount outside was reported: %v", got)
			}
		})
	}
}

func filter(evs []notify.Event, want func(notify.Event) bool) (out []notify.Event) {
	for _, ev := range evs {
		if want(ev) {
			out = append(out, ev)
		}
	}
	return out
}

// TestRefusingSubmount has overlayfs below tmpfs: one mark for the one, inode marks for the other.
func TestRefusingSubmount(t *testing.T) {
	base := mountAt(t, "heraldfs-test", "tmpfs", "")
	for _, d := range []string{"lower", "upper", "work", "tree/o", "tree/plain"} {
		if err := os.MkdirAll(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mountOn(t, base+"/tree/o", "overlay", "overlay", fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", base, base, base))
	b := newBed(t, base, watcher.Options{})
	if b.w.Backend != watcher.FanotifyInode || b.w.Marker == nil || !strings.Contains(b.w.Why, "/tree/o (overlay)") {
		t.Errorf("backend %s, why %q", b.w.Backend, b.w.Why)
	}
	b.mark("plain")
	b.mark("o")
	if n := inodeMarks(t); n != 1 {
		t.Errorf("%d inode marks, want 1", n)
	}
	b.do("create plain/f")
	b.do("create o/g")
	b.do("mkdir o/d")
	b.do("rename o/g o/d/g")
	want := []string{"create plain/f", "create o/g", "create,dir o/d", "rename o/g -> o/d/g"}
	if got := b.tell(b.fence()); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestNestedSubvolumes walks over a subvolume's border, where each side has a fsid of its own.
func TestNestedSubvolumes(t *testing.T) {
	top := btrfs(t)
	for _, be := range backends {
		for _, root := range []string{"", "sub"} {
			t.Run(be.name+"-"+filepath.Join("top", root), func(t *testing.T) {
				base := filepath.Join(top, root, strings.ReplaceAll(t.Name(), "/", "-"))
				if err := os.MkdirAll(base+"/tree", 0o755); err != nil {
					t.Fatal(err)
				}
				run(t, "btrfs", "subvolume", "create", base+"/tree/inner")
				b := newBed(t, base, be.opts)
				o := b.mark("inner")
				b.do("create inner/f")
				b.do("append inner/f x")
				b.do("mkdir inner/d")
				b.do("create inner/d/g")
				// Two groups have no order between them, so a fence outside would prove nothing.
				want := []string{"create inner/f", "modify inner/f", "close_write inner/f", "create,dir inner/d", "create inner/d/g"}
				var got []string
				b.await(want[4], func(ev notify.Event) bool {
					if ev.Name == "f" && ev.Dir != o {
						t.Errorf("%v is not in %v", ev, o)
					}
					got = append(got, b.tell([]notify.Event{ev})...)
					return ev.Name == "g"
				})
				if strings.Join(got, "\n") != strings.Join(want, "\n") {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
	}
}

// inodeMarks counts the inode marks of all fanotify groups of this process.
func inodeMarks(t *testing.T) int { return countMarks(t, "fanotify ino:") }

func countMarks(t *testing.T, line string) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fdinfo")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range fds {
		info, err := os.ReadFile("/proc/self/fdinfo/" + e.Name())
		if err == nil {
			n += bytes.Count(info, []byte(line))
		}
	}
	return n
}

// TestSetupIsFlat opens watchers on a small and a large tree and compares the marks they need,
// and counts what is held for directories that came and went.
func TestSetupIsFlat(t *testing.T) {
	needRoot(t)
	root := mountAt(t, "heraldfs-test", "tmpfs", "")
	marks := func() int {
		w, err := watcher.Open(watcher.Options{Root: root, Backend: watcher.Fanotify})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if w.Marker != nil {
			t.Error("there is a Marker")
		}
		return countMarks(t, "fanotify sdev:") + inodeMarks(t)
	}
	small := marks()
	for i := range 5000 {
		if err := os.Mkdir(filepath.Join(root, strconv.Itoa(i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if large := marks(); small != 1 || large != 1 {
		t.Errorf("%d marks on a small tree, %d on a large one, want 1", small, large)
	}

	w, err := watcher.Open(watcher.Options{Root: root, Backend: watcher.Fanotify, ForceInodeMarks: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	before := len(descriptors())
	var dirs []notify.Object
	for i := range 1000 {
		dirs = append(dirs, markPath(t, w.Marker, filepath.Join(root, strconv.Itoa(i))))
	}
	if n := inodeMarks(t); n != 1000 {
		t.Errorf("%d inode marks, want 1000", n)
	}
	if n := len(descriptors()); n != before {
		t.Errorf("%d descriptors are held for the marks", n-before)
	}
	for _, d := range dirs {
		w.Marker.Unmark(d)
	}
	if n := inodeMarks(t); n != 0 {
		t.Errorf("%d inode marks left", n)
	}
}
