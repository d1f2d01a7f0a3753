package coalesce

import (
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

func TestBatches(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"a merged delete goes behind the renames and the link count", `
			CREATE|MODIFY|CLOSE_WRITE|DELETE 1/f =2
			RENAME 1/f > 1/g =2
			RENAME 1/g > 1/f =2
			ATTRIB =2`, `
			create 1/f
			modify 1/f
			close_write 1/f
			rename 1/f > 1/g
			rename 1/g > 1/f !
			link_count =2
			delete 1/f !`},
		{"canonical order", `
			ATTRIB|MODIFY|OPEN|CREATE|CLOSE_WRITE|CLOSE_NOWRITE|ACCESS 1/f =2`, `
			create 1/f
			open 1/f
			access 1/f
			modify 1/f
			attrib 1/f
			close_nowrite 1/f
			close_write 1/f`},
		{"delete before the next object of that name", `
			CREATE|DELETE 1/f =2
			CREATE|DELETE 1/f =3
			CREATE 1/f =4
			MODIFY 1/f =2 p1`, `
			create 1/f
			delete 1/f
			create 1/f
			delete 1/f
			create 1/f
			modify 1/f !`},
		{"delete before another object is renamed there", `
			CREATE|DELETE 1/f =2
			RENAME 1/g > 1/f =3
			MODIFY|DELETE 1/f =3`, `
			create 1/f
			delete 1/f
			rename 1/g > 1/f
			modify 1/f
			delete 1/f !`},
		{"rmdir behind what happened inside, at every depth", `
			CREATE|DELETE|ISDIR 1/d =2
			CREATE|DELETE|ISDIR 2/e =3
			CREATE|DELETE 3/x =4
			RENAME 3/x > 1/y =4
			RENAME 1/y > 3/x =4
			CREATE 1/z =5`, `
			create 1/d
			create 2/e
			create 3/x
			rename 3/x > 1/y
			rename 1/y > 3/x !
			delete 3/x !
			delete 2/e !
			delete 1/d !
			create 1/z`},
		{"rmdir behind what passed through it", `
			ATTRIB|DELETE|ISDIR 1/d =2
			RENAME 1/x > 2/x =4
			RENAME 2/x > 1/w =4
			CREATE 1/z =5`, `
			attrib 1/d
			rename 1/x > 2/x !
			rename 2/x > 1/w !
			delete 1/d
			create 1/z`},
		{"a deleted directory's files went before it", `
			CREATE|DELETE 2/x =4
			DELETE|ISDIR 1/d =2
			ATTRIB =4`, `
			create 2/x
			delete 2/x !
			delete 1/d
			link_count =4`},
		{"a directory that was renamed over was empty", `
			MODIFY|DELETE 3/x =5
			RENAME|ISDIR 1/a > 1/b =2
			ATTRIB|DELETE_SELF|ISDIR 3/.
			MODIFY 3/x =5 p1`, `
			modify 3/x
			delete 3/x
			rename 1/a > 1/b
			attrib 3/.
			modify 3/x
			delete_self =3`},
		{"a directory's DELETE_SELF behind its files' deletes", `
			ATTRIB|DELETE_SELF|ISDIR 2/.
			CREATE|DELETE|ISDIR 1/d =2
			CREATE|DELETE 2/x =3
			RENAME 2/x > 1/y =3
			RENAME 1/y > 2/x =3`, `
			attrib 2/.
			create 1/d
			create 2/x
			rename 2/x > 1/y
			rename 1/y > 2/x !
			delete 2/x !
			delete_self =2
			delete 1/d !`},
		{"a directory that was renamed over had been left by all", `
			ATTRIB|DELETE_SELF|ISDIR 2/.
			RENAME 2/x > 1/y =4
			RENAME|ISDIR 1/e > 1/d =3
			CREATE 1/z =5`, `
			attrib 2/.
			rename 2/x > 1/y
			delete_self =2
			rename 1/e > 1/d
			create 1/z`},
		{"the delete of one link behind the making of the other", `
			CREATE|DELETE 1/tmp =2
			ATTRIB =2
			CREATE 1/f =2
			MODIFY 1/f =2`, `
			create 1/tmp
			link_count =2
			create 1/f
			delete 1/tmp !
			modify 1/f !`},
		{"deleted, and linked again to what it was known to be", `
			RENAME 1/x > 1/f =2
			CREATE|DELETE 1/f =2`, `
			rename 1/x > 1/f !
			delete 1/f
			create 1/f !`},
		{"deleted, linked again, and away", `
			CREATE|DELETE 1/f =2
			ATTRIB =2
			RENAME 1/f > 1/g =2`, `
			delete 1/f
			create 1/f
			link_count =2
			rename 1/f > 1/g !`},
		{"a lost rename that a delete proves", `
			RENAME 1/a > 1/b =2
			RENAME 1/b > 1/a =2
			DELETE 1/b =2`, `
			rename 1/a > 1/b
			rename 1/b > 1/a
			rename 1/a > 1/b !
			delete 1/b !`},
		{"a lost rename goes before the unlink's link count", `
			CREATE|MODIFY|CLOSE_WRITE 1/q =2
			RENAME 1/q > 1/r =2
			RENAME 1/r > 1/q =2
			ATTRIB|DELETE_SELF =2
			MODIFY 1/z =9
			DELETE 1/r =2`, `
			create 1/q
			modify 1/q
			close_write 1/q
			rename 1/q > 1/r
			rename 1/r > 1/q
			rename 1/q > 1/r !
			link_count =2
			delete_self =2
			modify 1/z
			delete 1/r !`},
		{"a lost rename before a merged delete and its link count", `
			RENAME 1/g > 1/f =2
			MODIFY|DELETE 1/f =2
			RENAME 1/f > 1/g =2
			ATTRIB|DELETE_SELF =2`, `
			rename 1/g > 1/f
			modify 1/f
			rename 1/f > 1/g
			rename 1/g > 1/f !
			link_count =2
			delete_self =2
			delete 1/f !`},
		{"a chmod of a new directory is no link", `
			CREATE|ISDIR 1/d =2
			ATTRIB|ISDIR 2/.
			RENAME|ISDIR 1/d > 1/e =2`, `
			create 1/d
			attrib 1/d
			rename 1/d > 1/e`},
		{"a lost rename that a create proves", `
			RENAME 1/a > 1/b =2
			RENAME 1/b > 1/a =2
			CREATE 1/a =3`, `
			rename 1/a > 1/b
			rename 1/b > 1/a
			rename 1/a > 1/b !
			create 1/a !`},
		{"a lost rename that a merged delete proves", `
			RENAME 1/g > 1/f =2
			MODIFY|DELETE 1/f =2
			RENAME 1/f > 1/g =2`, `
			rename 1/g > 1/f
			modify 1/f
			rename 1/f > 1/g
			rename 1/g > 1/f !
			delete 1/f !`},
		{"a lost rename that the end of a replaced file proves", `
			RENAME 1/a > 1/b =2
			RENAME 1/b > 1/a =2
			RENAME 1/c > 1/b =3
			DELETE_SELF =2
			CREATE 1/c =4`, `
			rename 1/a > 1/b
			rename 1/b > 1/a
			rename 1/a > 1/b !
			rename 1/c > 1/b !
			delete_self =2
			create 1/c`},
		{"a file that a file replaces need not have left", `
			RENAME 1/a > 1/b =2
			RENAME 1/b > 1/a =2
			RENAME 1/c > 1/a =3`, `
			rename 1/a > 1/b
			rename 1/b > 1/a !
			rename 1/c > 1/a !`},
		{"the end of a file that was unlinked proves no rename", `
			RENAME 1/a > 1/b =2
			RENAME 1/b > 1/a =2
			RENAME 1/c > 1/b =3
			DELETE_SELF =2
			DELETE 1/a =2
			CREATE 1/c =4`, `
			rename 1/a > 1/b
			rename 1/b > 1/a
			rename 1/c > 1/b !
			delete_self =2
			delete 1/a !
			create 1/c`},
		{"the end of a file of which the unlink may come yet proves no rename", `
			RENAME 1/a > 1/b =2
			RENAME 1/b > 1/a =2
			RENAME 1/c > 1/b =3
			DELETE_SELF =2`, `
			rename 1/a > 1/b
			rename 1/b > 1/a !
			rename 1/c > 1/b !
			delete_self =2`},
		{"no lost rename of a file that is gone", `
			RENAME 1/a > 1/b =2
			RENAME 1/b > 1/a =2
			DELETE_SELF =2
			CREATE 1/a =3`, `
			rename 1/a > 1/b
			rename 1/b > 1/a !
			delete_self =2
			create 1/a !`},
		{"a lost rename to an entry that a merged delete has freed", `
			RENAME 1/b > 1/y =2
			RENAME 1/y > 1/b =2
			CREATE|DELETE 1/y =3
			RENAME 1/y > 1/z =2`, `
			rename 1/b > 1/y
			rename 1/y > 1/b
			create 1/y
			delete 1/y
			rename 1/b > 1/y !
			rename 1/y > 1/z !`},
		{"a lost rename to an entry that another file has got since", `
			RENAME 1/g > 1/f =2
			MODIFY|DELETE 1/f =2
			RENAME 1/f > 1/g =2
			DELETE_SELF =2
			CREATE 1/f =3`, `
			rename 1/g > 1/f
			modify 1/f
			rename 1/f > 1/g
			rename 1/g > 1/f !
			delete_self =2
			delete 1/f
			create 1/f !`},
		{"a modify proves no rename", `
			RENAME 1/a > 1/b =2
			RENAME 1/b > 1/a =2
			MODIFY 1/b =2`, `
			rename 1/a > 1/b
			rename 1/b > 1/a !
			modify 1/b !`},
		{"exchange", `
			RENAME 1/a > 3/b =4
			MODIFY 1/a =5
			CREATE 9/c =6
			RENAME 3/b > 1/a =5
			MODIFY 3/b =4`, `
			exchange 1/a > 3/b
			modify 1/a
			create 9/c
			modify 3/b`},
		{"a rename back is no exchange", `
			RENAME 1/a > 1/b =4
			RENAME 1/b > 1/a =4`, `
			rename 1/a > 1/b
			rename 1/b > 1/a !`},
		{"what was created in between was not exchanged", `
			RENAME 1/a > 1/b =4
			RENAME 1/b > 1/c =4
			CREATE 1/b =5
			RENAME 1/b > 1/a =5`, `
			rename 1/a > 1/b
			rename 1/b > 1/c !
			create 1/b
			rename 1/b > 1/a !`},
		{"what was elsewhere was not exchanged", `
			RENAME 1/x > 1/b =5
			RENAME 1/b > 1/x =5
			RENAME 1/a > 1/b =4
			RENAME 1/b > 1/a =5`, `
			rename 1/x > 1/b
			rename 1/b > 1/x !
			rename 1/a > 1/b
			rename 1/b > 1/a !`},
		{"exchanged and deleted: the delete is of the other name's object", `
			MODIFY|DELETE 1/b =5
			RENAME 1/a > 1/b =4
			RENAME 1/b > 1/a =5
			RENAME 1/a > 1/b =5
			RENAME 1/b > 1/a =4`, `
			modify 1/b
			exchange 1/a > 1/b
			exchange 1/a > 1/b !
			delete 1/b !`},
		{"linked, renamed and overwritten: a second rename may be hidden", `
			CREATE 1/a =2
			RENAME 1/a > 1/b =2
			ATTRIB =2
			CREATE 1/x =3 
			RENAME 1/x > 1/b =3`, `
			create 1/a
			rename 1/a > 1/b !
			link_count =2
			create 1/x
			rename 1/x > 1/b !`},
		{"two atomic saves hide nothing", `
			CREATE|MODIFY|CLOSE_WRITE 1/t =2
			RENAME 1/t > 1/f =2
			CREATE|MODIFY|CLOSE_WRITE 1/u =3
			RENAME 1/u > 1/f =3
			ATTRIB|DELETE_SELF =2`, `
			create 1/t
			modify 1/t
			close_write 1/t
			rename 1/t > 1/f
			create 1/u
			modify 1/u
			close_write 1/u
			rename 1/u > 1/f
			link_count =2
			delete_self =2`},
		{"created and overwritten, with another link", `
			ATTRIB =2
			CREATE 1/b =2
			RENAME 1/x > 1/b =3
			DELETE 1/b =3`, `
			link_count =2
			create 1/b
			rename 1/x > 1/b
			delete 1/b !`},
		{"a directory's own change before its rename has the old name", `
			ATTRIB|ISDIR 5/.
			RENAME|ISDIR 1/d > 1/e =5
			ATTRIB|ISDIR 5/.`, `
			attrib 1/d
			rename 1/d > 1/e
			attrib 5/.`},
		{"neighbours fold", `
			MODIFY 1/f =2
			MODIFY 1/f =2
			MODIFY 1/g =3
			MODIFY 1/f =2`, `
			modify 1/f
			modify 1/g
			modify 1/f`},
		{"a record without an object stays in its place", `
			CREATE|DELETE 1/f
			CREATE 1/f
			RENAME 1/f > 1/g`, `
			create 1/f
			delete 1/f
			create 1/f
			rename 1/f > 1/g !`},
		{"a rename in and a rename out", `
			RENAME 1/a =2
			RENAME > 1/b =2`, `
			rename 1/a > ? !
			rename ? > 1/b !`},
		{"overflow in place", `
			MODIFY|DELETE 1/f =2
			OVERFLOW
			ATTRIB =2`, `
			modify 1/f
			delete 1/f
			overflow =
			link_count =2`},
		{"inotify: nothing moves", `
			CREATE 1/f
			MOVED_FROM 1/f c1
			MOVED_TO 2/g c1
			DELETE 2/g
			CREATE 1/f`, `
			create 1/f
			rename 1/f > 2/g
			delete 2/g
			create 1/f`},
		{"inotify: the other half after records of other directories", `
			MOVED_FROM 1/f c1
			MODIFY 3/x
			MODIFY 2/x
			MODIFY 1/x
			MOVED_TO 2/g c1
			CREATE 2/y`, `
			modify 3/x
			modify 2/x
			rename 1/f > 2/g
			modify 1/x
			create 2/y`},
		{"inotify: an entry record proves a move out", `
			MOVED_FROM 1/f c1
			MODIFY 1/x
			CREATE 2/y
			DELETE 1/y`, `
			create 2/y
			rename 1/f > ?
			modify 1/x
			delete 1/y`},
		{"inotify: a second half alone is a move in", `
			MOVED_TO 1/f c1
			MODIFY 1/f`, `
			rename ? > 1/f
			modify 1/f`},
		{"inotify: the second half's directory has a half of its own", `
			MOVED_FROM 2/x c1
			MOVED_FROM 1/f c2
			MOVED_TO 2/g c2`, `
			rename 2/x > ?
			rename 1/f > 2/g`},
		{"inotify: records inside a directory wait for its move", `
			MOVED_FROM|ISDIR 1/d c1 =7
			CREATE 7/x
			MOVED_FROM 7/x c2
			MODIFY 8/a
			MOVED_TO 8/y c2
			MODIFY 8/b
			MOVED_TO|ISDIR 2/d c1`, `
			modify 8/a
			rename 1/d > 2/d
			create 7/x
			rename 7/x > 8/y
			modify 8/b`},
		{"inotify: a directory for a file is an exchange", `
			MOVED_FROM 1/a c1
			MOVED_TO 2/b c1
			MODIFY 1/c
			MOVED_FROM|ISDIR 2/b c2
			MOVED_TO|ISDIR 1/a c2`, `
			exchange 1/a > 2/b
			modify 1/c`},
		{"inotify: back may be an exchange", `
			MOVED_FROM 1/a c1
			MOVED_TO 1/b c1
			MOVED_FROM 1/b c2
			MOVED_TO 1/a c2`, `
			rename 1/a > 1/b
			rename 1/b > 1/a !`},
		{"inotify: what changed in between was no exchange", `
			MOVED_FROM 1/a c1
			MOVED_TO 1/b c1
			DELETE 1/x
			MOVED_FROM|ISDIR 1/b c2
			MOVED_TO|ISDIR 1/a c2`, `
			rename 1/a > 1/b
			delete 1/x
			rename 1/b > 1/a`},
		{"inotify: a half before an overflow", `
			MOVED_FROM 1/a c1
			MODIFY 1/b
			OVERFLOW
			MOVED_TO 1/c c1`, `
			rename 1/a > ?
			modify 1/b
			overflow =
			rename ? > 1/c`},
		{"inotify: the directory itself", `
			ATTRIB|ISDIR 5/
			DELETE_SELF 5/`, `
			attrib 5/.
			delete_self =5`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := New(Config{})
			got := story(c.Push(nil, parseRaws(t, tt.in), epoch))
			if want := lines(tt.want); got != want {
				t.Errorf("told:\n%s\nwant:\n%s", got, want)
			}
			if d := c.Deadline(); !d.IsZero() {
				t.Errorf("something is still held until %v", d)
			}
		})
	}
}

func TestHalfWaits(t *testing.T) {
	c := New(Config{MoveWait: 10 * time.Millisecond})
	at := func(ms int) time.Time { return epoch.Add(time.Duration(ms) * time.Millisecond) }
	push := func(ms int, script, want string) {
		t.Helper()
		if got := story(c.Push(nil, parseRaws(t, script), at(ms))); got != want {
			t.Fatalf("at %dms told %q, want %q", ms, got, want)
		}
	}
	push(0, "MOVED_FROM 1/a c1", "")
	push(1, "MODIFY 1/a\nMODIFY 2/a\nMOVED_FROM 2/b c2", "modify 2/a\n")
	if d := c.Deadline(); d != at(10) {
		t.Fatalf("deadline %v, want %v", d, at(10))
	}
	if got := c.Flush(nil, at(9)); len(got) != 0 {
		t.Fatalf("flushed early: %v", got)
	}
	if got, want := story(c.Flush(nil, at(10))), "rename 1/a > ?\nmodify 1/a\n"; got != want {
		t.Fatalf("flushed %q, want %q", got, want)
	}
	if d := c.Deadline(); d != at(11) {
		t.Fatalf("deadline %v, want %v", d, at(11))
	}
	push(50, "MOVED_TO 3/b c2", "rename 2/b > 3/b\n") // late, but in time for this Push
	push(51, "MOVED_FROM 1/c c3", "")
	push(70, "MODIFY 9/x", "modify 9/x\nrename 1/c > ?\n")
	if d := c.Deadline(); !d.IsZero() {
		t.Fatalf("nothing is held, but the deadline is %v", d)
	}
}

// TestHalvesBehindHalves has a second half wait for the move of its directory.
func TestHalvesBehindHalves(t *testing.T) {
	c := New(Config{MoveWait: 10 * time.Millisecond})
	c.Push(nil, parseRaws(t, "MOVED_FROM 1/a c1"), epoch)
	later := epoch.Add(time.Millisecond)
	c.Push(nil, parseRaws(t, "MOVED_FROM|ISDIR 3/d c2 =2\nMOVED_TO 2/a c1"), later)
	if got := c.Flush(nil, epoch.Add(10*time.Millisecond)); len(got) != 0 {
		t.Fatalf("the first half was told without its mate: %s", story(got))
	}
	if got, want := story(c.Flush(nil, later.Add(10*time.Millisecond))), "rename 3/d > ?\nrename 1/a > 2/a\n"; got != want {
		t.Fatalf("told %q, want %q", got, want)
	}
}

func TestLimit(t *testing.T) {
	c := New(Config{Limit: 3})
	raws := parseRaws(t, "MOVED_FROM 1/a c1\nMODIFY 1/b\nMODIFY 1/c\nMODIFY 1/d\nMOVED_TO 2/a c1")
	got := story(c.Push(nil, raws, epoch))
	if want := "rename 1/a > ?\nmodify 1/b\nmodify 1/c\nmodify 1/d\nrename ? > 2/a\n"; got != want {
		t.Fatalf("told %q, want %q", got, want)
	}
}

// TestTornExchange splits an exchange between two batches.
func TestTornExchange(t *testing.T) {
	for _, tt := range []struct{ first, second, want string }{
		{"RENAME 1/a > 1/b =2", "RENAME 1/b > 1/a =3", "rename 1/b > 1/a !\n"},
		{"RENAME 1/a > 1/b =2", "RENAME 1/b > 1/a =3\nMODIFY 1/q =9", "rename 1/b > 1/a !\nmodify 1/q\n"},
		{"RENAME 1/a > 1/b =2", "RENAME 1/b > 1/a =2", "rename 1/b > 1/a\n"},
		{"RENAME 1/a > 1/b =2\nCREATE 1/c =4", "RENAME 1/b > 1/a =3", "rename 1/b > 1/a\n"},
		{"MOVED_FROM 1/a c1\nMOVED_TO 1/b c1", "MOVED_FROM|ISDIR 1/b c2\nMOVED_TO|ISDIR 1/a c2", "rename 1/b > 1/a !\n"},
	} {
		c := New(Config{})
		c.Push(nil, parseRaws(t, tt.first), epoch)
		if got := story(c.Push(nil, parseRaws(t, tt.second), epoch)); got != tt.want {
			t.Errorf("%q then %q told %q, want %q", tt.first, tt.second, got, tt.want)
		}
	}
}

// TestFields looks at what the scripts above leave out.
func TestFields(t *testing.T) {
	c := New(Config{})
	got := c.Push(make([]notify.Event, 1), parseRaws(t, "MOVED_FROM|ISDIR 1/a c7 =5 p3\nMOVED_TO|ISDIR 2/b c7 p3"), epoch)
	want := notify.Event{
		Op: notify.OpRename, IsDir: true, Dir: obj(1), Name: "a", NewDir: obj(2), NewName: "b",
		Object: obj(5), Cookie: 7, Pid: 3,
	}
	if len(got) != 2 || got[1] != want || got[0] != (notify.Event{}) {
		t.Errorf("told %+v, want an untouched first event and %+v", got, want)
	}
	if last := c.Push(got[1:], parseRaws(t, "RENAME 2/b > 3/b =5"), epoch); len(last) != 2 || last[0] != want {
		t.Errorf("the caller's events were changed: %+v", last)
	}
}
