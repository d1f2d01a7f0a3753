package replay

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// TestGone tells of things that are not there any more.
func TestGone(t *testing.T) {
	b := newBed(t, before(t))
	b.watch("d")
	b.write("d/x", "x")
	b.must(os.Mkdir(b.path("d/dir"), 0o755))
	x, dir := b.obj("d/x"), b.obj("d/dir")
	b.must(os.Remove(b.path("d/x")), os.Remove(b.path("d/dir")))
	host := b.snapshot()
	b.push(b.ev(notify.OpCreate, "d", "x", x), b.ev(notify.OpModify, "d", "x", x), b.ev(notify.OpAttrib, "d", "x", x),
		b.move("d", "x", "d", "y", x), b.ev(notify.OpDelete, "d", "y", x),
		isDir(b.ev(notify.OpCreate, "d", "dir", dir)), isDir(b.move("d", "dir", "d", "dir2", dir)), isDir(b.ev(notify.OpDelete, "d", "dir2", dir)))
	b.expect(`d CREATE "x"`, `d MODIFY "x"`, `d ATTRIB "x"`, `d MOVED_FROM "x" cookie 1`, `d MOVED_TO "y" cookie 1`, `d DELETE "y"`,
		`d CREATE,ISDIR "dir"`, `d MOVED_FROM,ISDIR "dir" cookie 2`, `d MOVED_TO,ISDIR "dir2" cookie 2`, `d DELETE,ISDIR "dir2"`)
	b.expectHost(host)
	for _, name := range []string{"x", "y", "dir", "dir2"} {
		if b.look("d/" + name) {
			t.Errorf("%s is there in the guest", name)
		}
	}
	if d := b.guestDiffers(); d != "" {
		t.Error(d)
	}
}

// TestGoneWithoutObjects is the same from a source that names no objects.
func TestGoneWithoutObjects(t *testing.T) {
	b := newBed(t, before(t))
	b.watch("d")
	none := notify.Object{}
	b.push(b.ev(notify.OpCreate, "d", "x", none), b.ev(notify.OpModify, "d", "x", none), b.ev(notify.OpCloseWrite, "d", "x", none),
		b.move("d", "x", "d", "y", none), b.ev(notify.OpDelete, "d", "y", none))
	b.expect(`d CREATE "x"`, `d MODIFY "x"`, `d OPEN "x"`, `d CLOSE_WRITE "x"`, `d MOVED_FROM "x" cookie 1`, `d MOVED_TO "y" cookie 1`, `d DELETE "y"`)
	if b.look("d/x") || b.look("d/y") {
		t.Error("a ghost can be found in the guest")
	}
}

// TestUnknownDirectory changes what no guest process has ever looked at.
func TestUnknownDirectory(t *testing.T) {
	b := newBed(t, before(t))
	b.watch("d")
	b.push() // whatever the start has asked
	requests := b.requests.n.Load()
	for i := range 20 {
		name := "f" + strconv.Itoa(i)
		b.write("e/"+name, name)
		o := b.obj("e/" + name)
		b.push(b.ev(notify.OpCreate, "e", name, o), b.ev(notify.OpModify, "e", name, o), b.ev(notify.OpCloseWrite, "e", name, o),
			b.move("e", name, "e", "g", o), b.ev(notify.OpDelete, "e", "g", o))
	}
	if n := b.requests.n.Load() - requests; n != 0 {
		t.Errorf("%d requests for a directory that the guest does not know", n)
	}
	if n := b.fs.Stats().Dropped.Load(); n != 100 {
		t.Errorf("%d events dropped, must be 100", n)
	}
	b.expect()
}

// TestEarlyLookups has a guest process look at names after the host changed them and before
// the mount hears of it: the kernel's dentries are then ahead of the events.
func TestEarlyLookups(t *testing.T) {
	for _, c := range []row{
		{"create", nil, func(b *bed) []notify.Event {
			b.write("d/new", "new")
			return []notify.Event{b.ev(notify.OpCreate, "d", "new", b.obj("d/new"))}
		}, []string{`d CREATE "new"`}},
		{"create a directory", nil, func(b *bed) []notify.Event {
			b.must(os.Mkdir(b.path("d/new"), 0o755))
			return []notify.Event{isDir(b.ev(notify.OpCreate, "d", "new", b.obj("d/new")))}
		}, []string{`d CREATE,ISDIR "new"`}},
		{"delete", []string{"d/f"}, func(b *bed) []notify.Event {
			ev := b.ev(notify.OpDelete, "d", "f", b.obj("d/f"))
			b.must(os.Remove(b.path("d/f")))
			return []notify.Event{ev}
		}, []string{`d/f ATTRIB ""`, `d/f DELETE_SELF ""`, `d/f IGNORED ""`, `d DELETE "f"`}},
		{"delete a directory", []string{"d/sub"}, func(b *bed) []notify.Event {
			ev := isDir(b.ev(notify.OpDelete, "d", "sub", b.obj("d/sub")))
			b.must(os.Remove(b.path("d/sub")))
			return []notify.Event{ev}
		}, []string{`d/sub DELETE_SELF ""`, `d/sub IGNORED ""`, `d DELETE,ISDIR "sub"`}},
		{"rename", []string{"d/f"}, func(b *bed) []notify.Event {
			b.must(os.Rename(b.path("d/f"), b.path("d/new")))
			return []notify.Event{b.move("d", "f", "d", "new", b.obj("d/new"))}
		}, []string{`d MOVED_FROM "f" cookie 1`, `d MOVED_TO "new" cookie 1`, `d/f MOVE_SELF ""`}},
		{"rename a directory", []string{"d/sub"}, func(b *bed) []notify.Event {
			b.must(os.Rename(b.path("d/sub"), b.path("d/new")))
			return []notify.Event{isDir(b.move("d", "sub", "d", "new", b.obj("d/new")))}
		}, []string{`d MOVED_FROM,ISDIR "sub" cookie 1`, `d MOVED_TO,ISDIR "new" cookie 1`, `d/sub MOVE_SELF ""`}},
		{"rename over", []string{"d/f", "d/g"}, func(b *bed) []notify.Event {
			b.must(os.Rename(b.path("d/f"), b.path("d/g")))
			return []notify.Event{b.move("d", "f", "d", "g", b.obj("d/g"))}
		}, []string{`d MOVED_FROM "f" cookie 1`, `d MOVED_TO "g" cookie 1`, `d/g ATTRIB ""`,
			`d/f MOVE_SELF ""`, `d/g DELETE_SELF ""`, `d/g IGNORED ""`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, before(t))
			b.watch("d")
			b.watch(c.watch...)
			events := c.host(b)
			host := b.snapshot()
			for _, name := range []string{"f", "g", "sub", "new"} {
				path := b.mnt + "/d/" + name
				// Nothing of this is an event: the answers only fill the caches.
				_, err := os.Lstat(path)
				_, herr := os.Lstat(b.path("d/" + name))
				if (err == nil) != (herr == nil) && len(c.watch) == 0 {
					t.Fatalf("early lookup of %s: %v, on the host %v", name, err, herr)
				}
			}
			b.push(events...)
			b.expect(c.want...)
			b.expectHost(host)
			if d := b.guestDiffers(); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestVisibleMount replays without a root of its own, and does not keep the mount busy.
func TestVisibleMount(t *testing.T) {
	b := mountBed(t, before(t), true)
	b.watch("d")
	f := b.obj("d/f")
	b.must(os.Rename(b.path("d/f"), b.path("d/h")))
	b.push(b.move("d", "f", "d", "h", f), b.ev(notify.OpModify, "d", "h", f))
	b.expect(`d MOVED_FROM "f" cookie 1`, `d MOVED_TO "h" cookie 1`, `d MODIFY "h"`)
	start := b.descriptors()
	b.push(b.ev(notify.OpModify, "d", "h", f))
	if n := b.descriptors() - start; n != 0 {
		t.Errorf("%d descriptors more after a batch", n)
	}
	b.heard()
	b.guest.Close()
	if err := unix.Unmount(b.mnt, 0); err != nil {
		t.Errorf("the mount is busy: %v", err)
	}
}

// TestTwoMounts renames in a directory that the guest sees on two mounts.
func TestTwoMounts(t *testing.T) {
	var host string
	b := newBed(t, func(h string) {
		host = h
		before(t)(h)
		if err := unix.Mount(h+"/d", h+"/e", "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	})
	// Runs before the guest mount ends, which lets go of it by itself.
	t.Cleanup(func() {
		b.guest.Close()
		b.close()
		if err := unix.Unmount(host+"/e", 0); err != nil {
			t.Error(err)
			unix.Unmount(host+"/e", unix.MNT_DETACH)
		}
	})
	b.watch("d", "e")
	f := b.obj("d/f")
	b.must(os.Rename(b.path("d/f"), b.path("d/h")))
	b.push(b.move("d", "f", "d", "h", f))
	// Which of the two mounts comes first is not promised.
	first, second := "d", "e"
	heard := b.heard()
	if len(heard) > 0 && strings.HasPrefix(heard[0], "e") {
		first, second = second, first
	}
	want := []string{first + ` MOVED_FROM "f" cookie 1`, first + ` MOVED_TO "h" cookie 1`,
		second + ` MOVED_FROM "f" cookie 2`, second + ` MOVED_TO "h" cookie 2`}
	if !slices.Equal(heard, want) {
		t.Errorf("heard %q, must be %q", heard, want)
	}
	b.write("d/new", "")
	b.push(b.ev(notify.OpCreate, "d", "new", b.obj("d/new")))
	b.expect(first+` CREATE "new"`, second+` CREATE "new"`)
	if d := b.guestDiffers(); d != "" {
		t.Error(d)
	}
}
