package replay

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// row is a line of the table of what is replayed how.
type row struct {
	name string
	// watch are paths that the guest watches besides the root and "d".
	watch []string
	// host changes the host and returns the events of that.
	host func(b *bed) []notify.Event
	want []string
}

// before is the tree that each row starts from.
func before(t *testing.T) func(host string) {
	return func(host string) {
		for _, dir := range []string{"d", "d/sub", "e"} {
			if err := os.Mkdir(host+"/"+dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, file := range []string{"d/f", "d/g"} {
			if err := os.WriteFile(host+"/"+file, []byte(file), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestRows(t *testing.T) {
	for _, c := range append(nameRows, contentRows...) {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, before(t))
			b.watch("d")
			b.watch(c.watch...)
			events := c.host(b)
			host := b.snapshot()
			b.push(events...)
			b.expect(c.want...)
			b.expectHost(host)
			if n := b.fs.Stats().Fallbacks.Load(); n != 0 {
				t.Errorf("%d events fell back to dropping caches: %s", n, b.fs.Stats().LastProblem())
			}
			if d := b.guestDiffers(); d != "" {
				t.Error(d)
			}
		})
	}
}

// guestDiffers compares the tree that the guest sees with the host's.
func (b *bed) guestDiffers() string {
	b.t.Helper()
	var walk func(rel string) string
	walk = func(rel string) string {
		want, err := os.ReadDir(b.path(rel))
		b.must(err)
		got, err := os.ReadDir(b.mnt + "/" + rel)
		b.must(err)
		if len(want) != len(got) {
			return rel + ": the guest lists " + listing(got) + ", the host " + listing(want)
		}
		for i := range want {
			path := rel + "/" + want[i].Name()
			if want[i].Name() != got[i].Name() || want[i].Type() != got[i].Type() {
				return path + ": the guest has " + got[i].Name()
			}
			var g, h unix.Stat_t
			b.must(unix.Lstat(b.path(path), &h), unix.Lstat(b.mnt+"/"+path, &g))
			if g.Mode != h.Mode || g.Size != h.Size || g.Nlink != h.Nlink || g.Mtim != h.Mtim || g.Ino != h.Ino {
				return path + ": other attributes in the guest"
			}
			if want[i].Type().IsRegular() {
				hc, err := os.ReadFile(b.path(path))
				b.must(err)
				gc, err := os.ReadFile(b.mnt + "/" + path)
				b.must(err)
				if string(hc) != string(gc) {
					return path + ": other content in the guest"
				}
			}
			if want[i].IsDir() {
				if d := walk(path); d != "" {
					return d
				}
			}
		}
		return ""
	}
	return walk(".")
}

func listing(entries []os.DirEntry) (s string) {
	for _, e := range entries {
		s += e.Name() + " "
	}
	return s
}

// nameRows are the rows about names.
var nameRows = []row{
	{"create a file", nil, func(b *bed) []notify.Event {
		b.write("d/new", "new")
		return []notify.Event{b.ev(notify.OpCreate, "d", "new", b.obj("d/new"))}
	}, []string{`d CREATE "new"`}},
	{"create a directory", nil, func(b *bed) []notify.Event {
		b.must(os.Mkdir(b.path("d/new"), 0o750))
		return []notify.Event{isDir(b.ev(notify.OpCreate, "d", "new", b.obj("d/new")))}
	}, []string{`d CREATE,ISDIR "new"`}},
	{"create a symlink", nil, func(b *bed) []notify.Event {
		b.must(os.Symlink("f", b.path("d/new")))
		return []notify.Event{b.ev(notify.OpCreate, "d", "new", b.obj("d/new"))}
	}, []string{`d CREATE "new"`}},
	{"create a fifo", nil, func(b *bed) []notify.Event {
		b.must(unix.Mkfifo(b.path("d/new"), 0o644))
		return []notify.Event{b.ev(notify.OpCreate, "d", "new", b.obj("d/new"))}
	}, []string{`d CREATE "new"`}},
	{"link a file that the guest knows", []string{"d/f"}, func(b *bed) []notify.Event {
		b.must(os.Link(b.path("d/f"), b.path("d/new")))
		return []notify.Event{{Op: notify.OpLinkCount, Object: b.obj("d/f")}, b.ev(notify.OpCreate, "d", "new", b.obj("d/f"))}
	}, []string{`d/f ATTRIB ""`, `d CREATE "new"`}},
	{"link a file that the guest does not know", nil, func(b *bed) []notify.Event {
		b.must(os.Link(b.path("d/f"), b.path("d/new")))
		return []notify.Event{b.ev(notify.OpCreate, "d", "new", b.obj("d/f"))}
	}, []string{`d CREATE "new"`}},
	{"delete a watched file", []string{"d/f"}, func(b *bed) []notify.Event {
		ev := b.ev(notify.OpDelete, "d", "f", b.obj("d/f"))
		b.must(os.Remove(b.path("d/f")))
		return []notify.Event{ev}
	}, []string{`d/f ATTRIB ""`, `d/f DELETE_SELF ""`, `d/f IGNORED ""`, `d DELETE "f"`}},
	{"delete a file that the guest does not know", nil, func(b *bed) []notify.Event {
		ev := b.ev(notify.OpDelete, "d", "f", b.obj("d/f"))
		b.must(os.Remove(b.path("d/f")))
		return []notify.Event{ev}
	}, []string{`d DELETE "f"`}},
	{"remove a directory", []string{"d/sub"}, func(b *bed) []notify.Event {
		ev := isDir(b.ev(notify.OpDelete, "d", "sub", b.obj("d/sub")))
		b.must(os.Remove(b.path("d/sub")))
		return []notify.Event{ev}
	}, []string{`d/sub DELETE_SELF ""`, `d/sub IGNORED ""`, `d DELETE,ISDIR "sub"`}},
	{"rename", []string{"d/f"}, func(b *bed) []notify.Event {
		b.must(os.Rename(b.path("d/f"), b.path("d/h")))
		return []notify.Event{b.move("d", "f", "d", "h", b.obj("d/h"))}
	}, []string{`d MOVED_FROM "f" cookie 1`, `d MOVED_TO "h" cookie 1`, `d/f MOVE_SELF ""`}},
	{"rename between directories", []string{"e", "d/f"}, func(b *bed) []notify.Event {
		b.must(os.Rename(b.path("d/f"), b.path("e/h")))
		return []notify.Event{b.move("d", "f", "e", "h", b.obj("e/h"))}
	}, []string{`d MOVED_FROM "f" cookie 1`, `e MOVED_TO "h" cookie 1`, `d/f MOVE_SELF ""`}},
	{"rename over a file", []string{"d/f", "d/g"}, func(b *bed) []notify.Event {
		b.must(os.Rename(b.path("d/f"), b.path("d/g")))
		return []notify.Event{b.move("d", "f", "d", "g", b.obj("d/g"))}
	}, []string{`d MOVED_FROM "f" cookie 1`, `d MOVED_TO "g" cookie 1`, `d/g ATTRIB ""`,
		`d/f MOVE_SELF ""`, `d/g DELETE_SELF ""`, `d/g IGNORED ""`}},
	{"exchange", nil, func(b *bed) []notify.Event {
		b.must(unix.Renameat2(-1, b.path("d/f"), -1, b.path("d/sub"), unix.RENAME_EXCHANGE))
		ev := b.move("d", "f", "d", "sub", b.obj("d/sub"))
		ev.Op, ev.NewObject, ev.NewIsDir = notify.OpExchange, b.obj("d/f"), true
		return []notify.Event{ev}
	}, []string{`d MOVED_FROM "f" cookie 1`, `d MOVED_TO "sub" cookie 1`,
		`d MOVED_FROM,ISDIR "sub" cookie 2`, `d MOVED_TO,ISDIR "f" cookie 2`}},
	{"exchange as two renames", nil, func(b *bed) []notify.Event {
		b.must(unix.Renameat2(-1, b.path("d/f"), -1, b.path("d/g"), unix.RENAME_EXCHANGE))
		return []notify.Event{b.move("d", "f", "d", "g", b.obj("d/g")), b.move("d", "g", "d", "f", b.obj("d/f"))}
	}, []string{`d MOVED_FROM "f" cookie 1`, `d MOVED_TO "g" cookie 1`,
		`d MOVED_FROM "g" cookie 2`, `d MOVED_TO "f" cookie 2`}},
	{"move out", []string{"d/f"}, func(b *bed) []notify.Event {
		ev := b.ev(notify.OpRename, "d", "f", b.obj("d/f"))
		b.must(os.Rename(b.path("d/f"), b.t.TempDir()+"/f"))
		return []notify.Event{ev}
	}, []string{`d MOVED_FROM "f" cookie 1`, `d/f MOVE_SELF ""`}},
	{"move in", nil, func(b *bed) []notify.Event {
		outside := b.t.TempDir() + "/f"
		b.must(os.WriteFile(outside, []byte("new"), 0o644), os.Rename(outside, b.path("d/new")))
		return []notify.Event{{Op: notify.OpRename, NewDir: b.obj("d"), NewName: "new", Object: b.obj("d/new")}}
	}, []string{`d MOVED_TO "new" cookie 1`}},
	{"move into a directory that is not known", []string{"d/f"}, func(b *bed) []notify.Event {
		b.must(os.Rename(b.path("d/f"), b.path("e/f")))
		return []notify.Event{b.move("d", "f", "e", "f", b.obj("e/f"))}
	}, []string{`d MOVED_FROM "f" cookie 1`, `d/f MOVE_SELF ""`}},
	{"move a watched directory out and in again", []string{"d/sub"}, func(b *bed) []notify.Event {
		sub := b.obj("d/sub")
		out := isDir(b.ev(notify.OpRename, "d", "sub", sub))
		in := isDir(notify.Event{Op: notify.OpRename, NewDir: b.obj("d"), NewName: "back", Object: sub})
		aside := b.t.TempDir() + "/sub"
		b.must(os.Rename(b.path("d/sub"), aside), os.Rename(aside, b.path("d/back")))
		b.write("d/back/f", "")
		return []notify.Event{out, in, b.ev(notify.OpCreate, "d/back", "f", b.obj("d/back/f"))}
	}, []string{`d MOVED_FROM,ISDIR "sub" cookie 1`, `d/sub MOVE_SELF ""`, `d MOVED_TO,ISDIR "back" cookie 2`,
		`d/sub MOVE_SELF ""`, `d/sub CREATE "f"`}},
	{"rename a directory with a watch deep below", []string{"e", "d/sub"}, func(b *bed) []notify.Event {
		b.must(os.Rename(b.path("d"), b.path("e/moved")))
		b.write("e/moved/sub/f", "")
		return []notify.Event{isDir(b.move(".", "d", "e", "moved", b.obj("e/moved"))),
			b.ev(notify.OpCreate, "e/moved/sub", "f", b.obj("e/moved/sub/f"))}
	}, []string{`e MOVED_TO,ISDIR "moved" cookie 1`, `d MOVE_SELF ""`, `d/sub CREATE "f"`}},
}

// contentRows are the rows about content and attributes.
var contentRows = []row{
	{"modify", []string{"d/f"}, func(b *bed) []notify.Event {
		b.write("d/f", "other")
		return []notify.Event{b.ev(notify.OpModify, "d", "f", b.obj("d/f"))}
	}, []string{`d MODIFY "f"`, `d/f MODIFY ""`}},
	{"read", []string{"d/f"}, func(b *bed) []notify.Event {
		return []notify.Event{b.ev(notify.OpAccess, "d", "f", b.obj("d/f"))}
	}, []string{`d ACCESS "f"`, `d/f ACCESS ""`}},
	{"attributes of a file", []string{"d/f"}, func(b *bed) []notify.Event {
		b.must(os.Chmod(b.path("d/f"), 0o600))
		return []notify.Event{b.ev(notify.OpAttrib, "d", "f", b.obj("d/f"))}
	}, []string{`d ATTRIB "f"`, `d/f ATTRIB ""`}},
	{"attributes of a directory", []string{"d/sub"}, func(b *bed) []notify.Event {
		b.must(os.Chmod(b.path("d/sub"), 0o700))
		return []notify.Event{isDir(b.ev(notify.OpAttrib, "d/sub", ".", notify.Object{}))}
	}, []string{`d ATTRIB,ISDIR "sub"`, `d/sub ATTRIB,ISDIR ""`}},
	{"attributes of a directory that the guest does not know", nil, func(b *bed) []notify.Event {
		b.must(os.Chmod(b.path("d/sub"), 0o700))
		return []notify.Event{isDir(b.ev(notify.OpAttrib, "d/sub", ".", notify.Object{}))}
	}, []string{`d ATTRIB,ISDIR "sub"`}},
	{"attributes of the root", []string{"."}, func(b *bed) []notify.Event {
		b.must(os.Chmod(b.host, 0o751))
		return []notify.Event{isDir(b.ev(notify.OpAttrib, ".", ".", notify.Object{}))}
	}, []string{`. ATTRIB,ISDIR ""`}},
	{"open for writing and close", nil, func(b *bed) []notify.Event {
		f := b.obj("d/f")
		return []notify.Event{b.ev(notify.OpOpen, "d", "f", f), b.ev(notify.OpCloseWrite, "d", "f", f)}
	}, []string{`d OPEN "f"`, `d CLOSE_WRITE "f"`, `d CLOSE_NOWRITE "f"`}},
	{"open for reading and close", nil, func(b *bed) []notify.Event {
		f := b.obj("d/f")
		return []notify.Event{b.ev(notify.OpOpen, "d", "f", f), b.ev(notify.OpCloseNowrite, "d", "f", f)}
	}, []string{`d OPEN "f"`, `d CLOSE_NOWRITE "f"`}},
	{"a whole story", nil, func(b *bed) []notify.Event {
		b.write("d/tmp", "content")
		tmp, d := b.obj("d/tmp"), "d"
		b.must(os.Rename(b.path("d/tmp"), b.path("d/f")))
		return []notify.Event{b.ev(notify.OpCreate, d, "tmp", tmp), b.ev(notify.OpModify, d, "tmp", tmp),
			b.ev(notify.OpCloseWrite, d, "tmp", tmp), b.move(d, "tmp", d, "f", tmp)}
	}, []string{`d CREATE "tmp"`, `d MODIFY "tmp"`, `d OPEN "tmp"`, `d CLOSE_WRITE "tmp"`,
		`d MOVED_FROM "tmp" cookie 1`, `d MOVED_TO "f" cookie 1`}},
}
