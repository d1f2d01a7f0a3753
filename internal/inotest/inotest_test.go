package inotest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { testenv.LeakMain(m) }

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func touch(t *testing.T, path string) {
	t.Helper()
	must(t, os.WriteFile(path, nil, 0o644))
}

// twoDirs makes a recorder of two directories, labelled a and b.
func twoDirs(t *testing.T) (r *Recorder, a, b string) {
	t.Helper()
	top := t.TempDir()
	a, b = filepath.Join(top, "x"), filepath.Join(top, "y")
	must(t, os.Mkdir(a, 0o755), os.Mkdir(b, 0o755))
	r = New(t, Options{})
	r.Watch(a, "a", 0)
	r.Watch(b, "b", 0)
	return r, a, b
}

func TestRecord(t *testing.T) {
	r, a, b := twoDirs(t)
	touch(t, filepath.Join(a, "f"))
	must(t, os.Rename(filepath.Join(a, "f"), filepath.Join(b, "g")),
		os.Mkdir(filepath.Join(b, "d"), 0o755),
		os.Rename(filepath.Join(b, "d"), filepath.Join(b, "e")))
	touch(t, filepath.Join(a, "first"))
	got := r.WaitFor("first")
	want := []Record{
		{Label: "a", Mask: notify.Create, Name: "f"},
		{Label: "a", Mask: notify.CloseWrite, Name: "f"},
		{Label: "a", Mask: notify.MovedFrom, Name: "f", Cookie: 1},
		{Label: "b", Mask: notify.MovedTo, Name: "g", Cookie: 1},
		{Label: "b", Mask: notify.Create | notify.IsDir, Name: "d"},
		{Label: "b", Mask: notify.MovedFrom | notify.IsDir, Name: "d", Cookie: 2},
		{Label: "b", Mask: notify.MovedTo | notify.IsDir, Name: "e", Cookie: 2},
	}
	ignoreAt := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".At" }, cmp.Ignore())
	if d := cmp.Diff(want, got, ignoreAt); d != "" {
		t.Errorf("recorded (-want +got):\n%s", d)
	}
	for _, rec := range got {
		if rec.At.IsZero() {
			t.Errorf("%v has no time", rec)
		}
	}
	must(t, os.Remove(filepath.Join(b, "g")))
	touch(t, filepath.Join(b, "second"))
	got = r.WaitFor("second")
	if d := cmp.Diff([]Record{{Label: "b", Mask: notify.Delete, Name: "g"}}, got, ignoreAt); d != "" {
		t.Errorf("between the sentinels (-want +got):\n%s", d)
	}
	if Lost(got) {
		t.Error("nothing was lost")
	}
}

func TestWatchFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	touch(t, file)
	must(t, os.Symlink("f", filepath.Join(dir, "link")))
	r := New(t, Options{})
	r.Watch(dir, "dir", notify.Create)
	r.Watch(file, "file", notify.AllMask)
	r.Watch(filepath.Join(dir, "link"), "link", notify.Attrib)
	must(t, os.Chmod(file, 0o600), os.Remove(file))
	touch(t, filepath.Join(dir, "end"))
	got := Format(r.WaitFor("end"))
	want := "\tfile ATTRIB \"\"\n\tfile ATTRIB \"\"\n\tfile DELETE_SELF \"\"\n\tfile IGNORED \"\"\n"
	// Read in one piece, the two ATTRIBs are one.
	if got != want && got != strings.Replace(want, "\tfile ATTRIB \"\"\n", "", 1) {
		t.Errorf("recorded:\n%swant:\n%s", got, want)
	}
}

// fatal runs f, which must call Fatalf, and returns what it says.
func fatal(t *testing.T, f func(testing.TB)) string {
	t.Helper()
	tb := &fakeTB{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(tb)
	}()
	<-done
	for _, c := range tb.cleanups {
		c()
	}
	return tb.said
}

type fakeTB struct {
	testing.TB
	said     string
	cleanups []func()
}

func (f *fakeTB) Cleanup(c func()) { f.cleanups = append(f.cleanups, c) }
func (f *fakeTB) Fatalf(format string, args ...any) {
	f.said = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestFailures(t *testing.T) {
	dir := t.TempDir()
	said := fatal(t, func(tb testing.TB) {
		r := New(tb, Options{Timeout: 20 * time.Millisecond})
		r.Watch(dir, "dir", 0)
		touch(t, filepath.Join(dir, "f"))
		r.WaitFor("never")
	})
	if !strings.Contains(said, `"never"`) || !strings.Contains(said, `dir CREATE "f"`) {
		t.Errorf("a missing sentinel says %q", said)
	}
	said = fatal(t, func(tb testing.TB) {
		r := New(tb, Options{})
		r.Watch(dir, "dir", 0)
		r.Watch(dir, "again", 0)
	})
	if !strings.Contains(said, `as "dir" already`) {
		t.Errorf("a directory with two labels says %q", said)
	}
	said = fatal(t, func(tb testing.TB) {
		r := New(tb, Options{})
		r.Close()
		r.WaitFor("x")
	})
	if !strings.Contains(said, "closed") {
		t.Errorf("waiting after Close says %q", said)
	}
}

// TestSameStory records the same changes in two places, at different paces.
func TestSameStory(t *testing.T) {
	tell := func(step func()) []Record {
		r, a, b := twoDirs(t)
		for i := range 20 {
			f, g := filepath.Join(a, fmt.Sprint("f", i)), filepath.Join(b, fmt.Sprint("g", i))
			touch(t, f)
			step()
			must(t, os.Truncate(f, 3), os.Truncate(f, 4), os.Rename(f, g))
			step()
			must(t, os.Chmod(g, 0o600))
		}
		must(t, unix.Renameat2(unix.AT_FDCWD, filepath.Join(b, "g1"), unix.AT_FDCWD, filepath.Join(b, "g2"), unix.RENAME_EXCHANGE))
		touch(t, filepath.Join(b, "end"))
		return r.WaitFor("end")
	}
	if d := Compare(tell(func() {}), tell(runtime.Gosched)); d != "" {
		t.Errorf("the same changes differ:\n%s", d)
	}
}

func TestCompare(t *testing.T) {
	from := Record{Label: "a", Mask: notify.MovedFrom, Name: "x", Cookie: 1}
	to := Record{Label: "b", Mask: notify.MovedTo, Name: "y", Cookie: 1}
	mod := Record{Label: "a", Mask: notify.Modify, Name: "x"}
	other := Record{Label: "b", Mask: notify.Modify, Name: "z"}
	cookie := func(r Record, n uint32) Record { r.Cookie = n; return r }
	for _, tt := range []struct {
		name          string
		native, guest []Record
		want          string // in the difference; "" if there is none
	}{
		{"equal but for numbers and times", []Record{from, to}, []Record{cookie(from, 7), cookie(to, 7)}, ""},
		{"order between directories", []Record{mod, other}, []Record{other, mod}, ""},
		{"a repetition", []Record{mod, other, mod}, []Record{mod, other}, ""},
		{"order within a directory", []Record{mod, from, to}, []Record{from, to, mod}, `MODIFY "x"`},
		{"missing", []Record{mod, other}, []Record{mod}, "b: native 1 events (-), guest 0"},
		{"false", []Record{mod}, []Record{mod, other}, "b: native 0 events (-), guest 1"},
		{"two cookies for one rename", []Record{from, to}, []Record{from, cookie(to, 2)}, "elsewhere"},
		{"no cookie", []Record{from, to}, []Record{cookie(from, 0), cookie(to, 0)}, "without a cookie"},
		{"the directory bit", []Record{mod}, []Record{{Label: "a", Mask: notify.Modify | notify.IsDir, Name: "x"}}, "MODIFY,ISDIR"},
		{"the same rename twice", []Record{from, to, cookie(from, 2), cookie(to, 2)}, []Record{from, to}, "native 2 events (-), guest 1"},
	} {
		got := Compare(tt.native, tt.guest)
		if tt.want == "" && got != "" || tt.want != "" && !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q in it", tt.name, got, tt.want)
		}
	}
	later := mod
	later.At = time.Unix(5, 0)
	if got := Fold([]Record{mod, later, other, mod}); len(got) != 3 {
		t.Errorf("folded to %v, want three", got)
	}
	if !Lost([]Record{mod, {Label: "?", Mask: notify.QOverflow}}) {
		t.Error("an overflow is a loss")
	}
}

// TestFoldMoves shows what the kernel merges in a queue that nobody reads: two moves to one name, from
// where there is no watch, are one record in spite of their cookies, and so are a move out and a rename.
func TestFoldMoves(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "d")
	must(t, os.Mkdir(dir, 0o755))
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, dir, unix.IN_MOVE)
	must(t, err)
	for _, name := range []string{"a", "b"} {
		touch(t, filepath.Join(top, name))
		must(t, os.Rename(filepath.Join(top, name), filepath.Join(dir, "n")))
	}
	// An exchange moves in first and out then.
	touch(t, filepath.Join(top, "c"))
	must(t, unix.Renameat2(unix.AT_FDCWD, filepath.Join(top, "c"), unix.AT_FDCWD, filepath.Join(dir, "n"), unix.RENAME_EXCHANGE),
		os.Rename(filepath.Join(dir, "n"), filepath.Join(dir, "m")))
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	must(t, err)
	events, err := parse(buf[:n], time.Time{})
	must(t, err)
	var queued []string
	for _, ev := range events {
		queued = append(queued, ev.mask.String()+" "+ev.name)
	}
	if d := cmp.Diff([]string{"MOVED_TO n", "MOVED_FROM n", "MOVED_TO m"}, queued); d != "" {
		t.Errorf("three moves to n, one out and a rename are in the queue (-want +got):\n%s", d)
	}

	to := func(cookie uint32) Record { return Record{Label: "d", Mask: notify.MovedTo, Name: "n", Cookie: cookie} }
	from := Record{Label: "e", Mask: notify.MovedFrom, Name: "m", Cookie: 2}
	if got := FoldMoves([]Record{to(1), to(2), to(3)}); len(got) != 1 || got[0].Cookie != 1 {
		t.Errorf("moves in are folded to %v", got)
	}
	out := func(cookie uint32) Record {
		return Record{Label: "d", Mask: notify.MovedFrom, Name: "n", Cookie: cookie}
	}
	renamed := Record{Label: "d", Mask: notify.MovedTo, Name: "m", Cookie: 2}
	if got := FoldMoves([]Record{out(1), out(2), renamed}); len(got) != 2 || got[0] != out(1) || got[1] != renamed {
		t.Errorf("a move out and a rename are folded to %v", got)
	}
	for _, kept := range [][]Record{
		{to(1), from, to(2)},
		{out(2), {Label: "e", Mask: notify.MovedTo, Name: "m", Cookie: 2}, out(3)},
		{to(1), {Label: "d", Mask: notify.Attrib, Name: "n"}, to(2)},
		{to(1), {Label: "d", Mask: notify.MovedTo | notify.IsDir, Name: "n", Cookie: 2}},
	} {
		if got := FoldMoves(kept); len(got) != len(kept) {
			t.Errorf("%v is folded to %v", kept, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00abc\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		events, err := parse(data, time.Time{})
		size := 0
		for _, ev := range events {
			size += unix.SizeofInotifyEvent + len(ev.name)
		}
		if size > len(data) || err == nil && len(data) > 0 && len(events) == 0 {
			t.Fatalf("%d bytes gave %v, %v", len(data), events, err)
		}
	})
}
