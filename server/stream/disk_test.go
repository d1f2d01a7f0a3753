package stream

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
)

func mustOpen(t *testing.T, o Options) *Stream {
	t.Helper()
	st, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

func allOfJournal(st *Stream) []string {
	first, head := st.journal.bounds()
	list, _ := st.journal.read(nil, first, int(head))
	var out []string
	for _, e := range list {
		out = append(out, fmt.Sprint(e.seq, " ", e.lost, " ", e.scope, " ", e.op, " ", e.from.Path(), " ", e.to.Path(), " ", e.isDir, " ", len(e.raw)))
	}
	return out
}

// crash leaves the journal as a killed process does.
func crash(st *Stream) {
	st.pub.Lock()
	defer st.pub.Unlock()
	_ = st.disk.lock.Close()
	_ = st.disk.file.Close()
	st.disk = nil
}

func segmentsIn(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*"+segmentExt))
	if err != nil || len(list) == 0 {
		t.Fatalf("segments: %v, %v", list, err)
	}
	return list
}

func mixed() []Record {
	return []Record{
		modify("a/b", "f"),
		{Op: protocol.OpRename, IsDir: true, To: protocol.Place{Name: "in"}, Cookie: 3, Pid: 9},
		{Lost: protocol.GapOverflow, Scope: "x/y"},
		{Op: protocol.OpDelete, From: protocol.Place{Name: "\xff\n"}, Object: notify.Object{FS: 1, Type: 1, Handle: "12345678"}},
	}
}

func TestJournalReopens(t *testing.T) {
	for _, how := range []string{"closed", "killed"} {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			st := mustOpen(t, Options{Dir: dir})
			st.Publish(mixed())
			st.Publish(mixed())
			want, id := allOfJournal(st), st.ID()
			sealed := st.Sealer().Seal(notify.Object{FS: 1, Type: 1, Handle: "12345678"})
			if how == "closed" {
				if err := st.Close(); err != nil {
					t.Fatal(err)
				}
			} else {
				crash(st)
			}
			again := mustOpen(t, Options{Dir: dir})
			if diff := cmp.Diff(want, allOfJournal(again)); diff != "" {
				t.Error(diff)
			}
			if !cmp.Equal(id, again.ID()) {
				t.Error("another stream")
			}
			if _, ok := again.Sealer().Open(sealed); !ok {
				t.Error("identities are not known any more")
			}
			again.Ready()
			again.Ready()
			if again.Head() != uint64(len(want))+1 {
				t.Errorf("head %d after Ready, want %d", again.Head(), len(want)+1)
			}
		})
	}
}

// TestTornTail cuts the last record at each of its bytes.
func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	st := mustOpen(t, Options{Dir: dir})
	st.Publish(mixed())
	st.Publish([]Record{modify("d", "last")})
	want, id := allOfJournal(st), st.ID()
	crash(st)
	path := segmentsIn(t, dir)[0]
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	metaBytes, err := os.ReadFile(filepath.Join(dir, "journal.json"))
	if err != nil {
		t.Fatal(err)
	}
	_, good, err := readSegment(path, 1)
	if err != nil || good != int64(len(whole)) {
		t.Fatalf("%d of %d bytes are good: %v", good, len(whole), err)
	}
	tail := recordHeader + 1 + len(st.journal.entries[4].raw)
	for cut := 1; cut < tail; cut++ {
		copyDir := t.TempDir()
		write(t, filepath.Join(copyDir, filepath.Base(path)), whole[:len(whole)-cut])
		write(t, filepath.Join(copyDir, "journal.json"), metaBytes)
		again := mustOpen(t, Options{Dir: copyDir})
		if diff := cmp.Diff(want[:len(want)-1], allOfJournal(again)); diff != "" || !cmp.Equal(id, again.ID()) {
			t.Fatalf("cut %d: %s", cut, diff)
		}
		// It goes on, and what it writes can be read again.
		again.Publish([]Record{modify("d", "next")})
		crash(again)
		third := mustOpen(t, Options{Dir: copyDir})
		if got := allOfJournal(third); len(got) != len(want) || !strings.Contains(got[len(got)-1], "d/next") {
			t.Fatalf("cut %d: then %q", cut, got)
		}
		if err := third.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDamage: a journal that is not what was written is not continued under its old name.
func TestDamage(t *testing.T) {
	damage := map[string]func(t *testing.T, dir string){
		"a flipped bit": func(t *testing.T, dir string) {
			path := segmentsIn(t, dir)[0]
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)-3] ^= 1
			write(t, path, b)
		},
		"a hole": func(t *testing.T, dir string) {
			if err := os.Remove(segmentsIn(t, dir)[1]); err != nil {
				t.Fatal(err)
			}
		},
		"a short segment in the middle": func(t *testing.T, dir string) {
			if err := os.Truncate(segmentsIn(t, dir)[1], 100); err != nil {
				t.Fatal(err)
			}
		},
		"another boot": func(t *testing.T, dir string) {
			path := filepath.Join(dir, "journal.json")
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, path, []byte(strings.Replace(string(b), bootID(), "another", 1)))
		},
		"no journal.json": func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "journal.json")); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, do := range damage {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			st := mustOpen(t, Options{Dir: dir})
			publish(st, 1, 5000)
			if len(segmentsIn(t, dir)) < 3 {
				st.disk.limit = 1
				publish(st, 5001, 5400)
			}
			id := st.ID()
			crash(st)
			do(t, dir)
			again := mustOpen(t, Options{Dir: dir})
			if cmp.Equal(id, again.ID()) {
				t.Error("the stream is the same")
			}
			if again.Head() != 0 {
				t.Errorf("head %d", again.Head())
			}
			again.Publish(mixed())
			if err := again.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestJournalInUse(t *testing.T) {
	dir := t.TempDir()
	mustOpen(t, Options{Dir: dir})
	if _, err := Open(Options{Dir: dir}); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
}

// TestJournalBounds: old segments go when nothing of them is kept.
func TestJournalBounds(t *testing.T) {
	dir := t.TempDir()
	st := mustOpen(t, Options{Dir: dir, JournalEvents: 300})
	st.disk.limit = 2 << 10
	publish(st, 1, 10000)
	s := st.Stats()
	if s.Head != 10000 || s.First != 9701 {
		t.Errorf("journal holds %d to %d", s.First, s.Head)
	}
	if n := len(segmentsIn(t, dir)); n > 10 {
		t.Errorf("%d segments", n)
	}
	want := allOfJournal(st)
	crash(st)
	again := mustOpen(t, Options{Dir: dir, JournalEvents: 300})
	if diff := cmp.Diff(want, allOfJournal(again)); diff != "" {
		t.Error(diff)
	}
	small := mustOpen(t, Options{JournalBytes: 20 << 10})
	publish(small, 1, 10000)
	if s := small.Stats(); s.JournalBytes > 20<<10 || s.First == 1 || s.First > s.Head {
		t.Errorf("%+v", s)
	}
}

// TestDiskFails: the stream goes on in memory, and the next one does not continue the remains.
func TestDiskFails(t *testing.T) {
	dir := t.TempDir()
	st := mustOpen(t, Options{Dir: dir})
	publish(st, 1, 10)
	_ = st.disk.file.Close() // as a disk that refuses
	publish(st, 11, 20)
	if st.Head() != 20 {
		t.Errorf("head %d", st.Head())
	}
	again := mustOpen(t, Options{Dir: dir})
	if cmp.Equal(again.ID(), st.ID()) || again.Head() != 0 {
		t.Error("what was not written is continued")
	}
}

// TestTooLong: a path that cannot be sent is a gap, not silence and not a broken connection.
func TestTooLong(t *testing.T) {
	st := mustOpen(t, Options{Dir: t.TempDir()})
	deep := strings.TrimSuffix(strings.Repeat("0123456789/", 7000), "/")
	st.Publish([]Record{modify(deep, "f"), {Lost: protocol.GapOverflow, Scope: deep}})
	list, _ := st.journal.read(nil, 1, 10)
	for _, e := range list {
		if e.lost == 0 || len(e.scope) > protocol.MaxPath || !strings.HasPrefix(deep, e.scope+"/") {
			t.Errorf("%v with a scope of %d bytes", e.lost, len(e.scope))
		}
	}
}
