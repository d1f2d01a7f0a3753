package stream

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/heraldfs/heraldfs/protocol"
)

func folded(script ...string) []string {
	f := &folder{fold: true}
	for i, line := range script {
		f.add(parseEntry(uint64(i+1), line))
	}
	return drain(f)
}

func drain(f *folder) []string {
	var out []string
	for e := f.peek(); e != nil; e = f.peek() {
		out = append(out, formatEntry(e))
		f.pop()
	}
	return out
}

var opWords = map[string]protocol.Op{
	"create": protocol.OpCreate, "delete": protocol.OpDelete, "rename": protocol.OpRename,
	"renamedir": protocol.OpRename, "exchange": protocol.OpExchange, "modify": protocol.OpModify,
	"attrib": protocol.OpAttrib,
}

func parseEntry(seq uint64, line string) *entry {
	w := strings.Fields(line)
	if w[0] == "lost" {
		return &entry{seq: seq, lost: protocol.GapOverflow}
	}
	e := &entry{seq: seq, op: opWords[w[0]], from: protocol.Place{Name: w[1]}, isDir: w[0] == "renamedir"}
	if len(w) > 2 {
		e.to = protocol.Place{Name: w[2]}
	}
	return e
}

func formatEntry(e *entry) string {
	if e.lost != 0 {
		return "lost"
	}
	s := e.op.String()
	if e.isDir {
		s += "dir"
	}
	s += " " + e.from.Name
	if e.to.Known() {
		s += " " + e.to.Name
	}
	return s
}

func TestFold(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"modify a;modify b;modify a", "modify b;modify a"},
		{"create a;modify a;attrib a;modify a", "create a;attrib a;modify a"},
		{"create a;modify a;delete a", "delete a"},
		{"delete a;create a;modify a;modify a", "delete a;create a;modify a"},
		{"delete a;create a;delete a;create a", "delete a;create a"},
		{"modify a;rename a b;modify a;modify b", "modify a;rename a b;modify a;modify b"},
		{"modify c;rename a b;modify c", "rename a b;modify c"},
		{"modify c;renamedir a b;modify c", "modify c;renamedir a b;modify c"},
		{"modify c;exchange a b;modify c", "modify c;exchange a b;modify c"},
		{"modify c;lost;modify c", "modify c;lost;modify c"},
	} {
		if got := strings.Join(folded(strings.Split(c.in, ";")...), ";"); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.in, got, c.want)
		}
	}
}

// state is what a subscriber that starts with it believes after the entries: for each name
// which file it is, and whether it was touched since.
func state(list []*entry) string {
	names := map[string]string{"a": "A", "b": "B", "c": "C", "d": "D"}
	made := 0
	for _, e := range list {
		switch e.op {
		case protocol.OpCreate:
			made++
			names[e.from.Name] = "new"
		case protocol.OpDelete:
			delete(names, e.from.Name)
		case protocol.OpRename:
			names[e.to.Name] = names[e.from.Name]
			delete(names, e.from.Name)
		case protocol.OpModify:
			names[e.from.Name] = strings.TrimSuffix(names[e.from.Name], "*") + "*"
		}
	}
	return fmt.Sprint(names)
}

// TestFoldKeepsState: whatever is folded, taken in between or tidied up, the end is the same.
func TestFoldKeepsState(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		f := &folder{fold: true}
		var all, got []*entry
		here := map[string]bool{"a": true, "b": true, "c": true, "d": true}
		name := func() string { return string(rune('a' + rng.IntN(4))) }
		for seq := uint64(1); seq <= 40; seq++ {
			n := name()
			line := "create " + n
			if here[n] {
				line = []string{"modify " + n, "delete " + n, "modify " + n, "rename " + n + " " + name()}[rng.IntN(4)]
			}
			e := parseEntry(seq, line)
			if e.op == protocol.OpRename && e.from == e.to {
				e = parseEntry(seq, "modify "+n)
			}
			switch e.op {
			case protocol.OpDelete:
				delete(here, n)
			case protocol.OpRename:
				delete(here, n)
				here[e.to.Name] = true
			default:
				here[n] = true
			}
			all = append(all, e)
			f.add(e)
			if rng.IntN(10) == 0 {
				if e := f.peek(); e != nil {
					got = append(got, e)
					f.pop()
				}
			}
		}
		for e := f.peek(); e != nil; e = f.peek() {
			got = append(got, e)
			f.pop()
		}
		if f.live != 0 || f.bytes != 0 {
			t.Fatalf("%d entries of %d bytes left in an empty folder", f.live, f.bytes)
		}
		for i := 1; i < len(got); i++ {
			if got[i].seq <= got[i-1].seq {
				t.Fatalf("sequence %d after %d", got[i].seq, got[i-1].seq)
			}
		}
		if state(got) != state(all) {
			t.Fatalf("got %s\nwant %s", state(got), state(all))
		}
	}
}

func TestFoldTidy(t *testing.T) {
	f := &folder{fold: true}
	for i := range 100000 {
		f.add(parseEntry(uint64(i+1), fmt.Sprint("modify f", i%10)))
		f.tidy()
	}
	if len(f.list) > 2048 {
		t.Errorf("%d places for %d entries", len(f.list), f.live)
	}
	if got := drain(f); len(got) != 10 || got[9] != "modify f9" {
		t.Errorf("got %q", got)
	}
}

func TestCommonDir(t *testing.T) {
	for _, c := range [][3]string{
		{"", "", ""}, {"a", "", ""}, {"a", "a", "a"}, {"a", "ab", ""}, {"a/b", "a", "a"},
		{"a/b/c", "a/b/d", "a/b"}, {"a/b", "a/bc", "a"}, {"x/y", "a/y", ""},
	} {
		if got := commonDir(c[0], c[1]); got != c[2] {
			t.Errorf("%q and %q: %q, want %q", c[0], c[1], got, c[2])
		}
		if got := commonDir(c[1], c[0]); got != c[2] {
			t.Errorf("%q and %q: %q, want %q", c[1], c[0], got, c[2])
		}
	}
}
