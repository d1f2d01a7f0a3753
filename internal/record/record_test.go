package record

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/quick"
	"time"
	"unicode/utf8"

	mp "github.com/vmihailenco/msgpack/v5"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher/tree"
)

var when = time.Date(2026, 11, 20, 21, 4, 5, 67, time.UTC)

// sample has a record of each kind that formats treat apart.
var sample = []tree.Record{
	{Type: tree.TypeReady, IsDir: true, Path: ".", Time: when},
	{Type: tree.TypeCreate, IsDir: true, Path: "a", Pid: 7, Time: when},
	{Type: tree.TypeCloseWrite, Path: "a/b, \"c\"", Time: when},
	{Type: tree.TypeRename, Path: "x/y", OldPath: "a/b", Cookie: 300, Time: when},
	{Type: tree.TypeRename, OldPath: "a/b", Time: when},
	{Type: tree.TypeRename, IsDir: true, Path: "n", Time: when},
	{Type: tree.TypeExchange, Path: "p", OldPath: "q", Time: when},
	{Type: tree.TypeAttrib, IsDir: true, Path: ".", Time: when},
	{Type: tree.TypeModify, Path: "bad\xff\nname", Time: when},
	{Type: tree.TypeOverflow, IsDir: true, Path: ".", Time: when},
}

func encode(t *testing.T, o Options, records []tree.Record) string {
	t.Helper()
	var out bytes.Buffer
	if o.Roots == nil {
		o.Roots = []Root{{Arg: "top", IsDir: true}}
	}
	w, err := New(&out, o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range records {
		if _, err := w.Add(&records[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestFormats(t *testing.T) {
	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"text", Options{}, `top/ READY 
top/ CREATE,ISDIR a
top/a/ CLOSE_WRITE,CLOSE b, "c"
top/a/ RENAME b -> top/x/y
top/a/ MOVED_FROM b
top/ MOVED_TO,ISDIR n
top/ EXCHANGE q -> top/p
top/ ATTRIB,ISDIR 
top/ MODIFY bad` + "\xff\nname\n" + `top/ Q_OVERFLOW 
`},
		{"csv", Options{Format: "csv"}, `top/,READY,
top/,"CREATE,ISDIR",a
top/a/,"CLOSE_WRITE,CLOSE","b, ""c"""
top/a/,RENAME,b,top/x/y
top/a/,MOVED_FROM,b
top/,"MOVED_TO,ISDIR",n
top/,EXCHANGE,q,top/p
top/,"ATTRIB,ISDIR",
top/,MODIFY,"bad` + "\xff\nname\"\n" + `top/,Q_OVERFLOW,
`},
		{"json", Options{Format: "json"}, `{"seq":1,"time":"2026-11-20T21:04:05.000000067Z","type":"ready","path":".","is_dir":true}
{"seq":2,"time":"2026-11-20T21:04:05.000000067Z","type":"create","path":"a","is_dir":true,"pid":7}
{"seq":3,"time":"2026-11-20T21:04:05.000000067Z","type":"close_write","path":"a/b, \"c\"","is_dir":false}
{"seq":4,"time":"2026-11-20T21:04:05.000000067Z","type":"rename","path":"x/y","old_path":"a/b","cookie":300,"is_dir":false}
{"seq":5,"time":"2026-11-20T21:04:05.000000067Z","type":"rename","old_path":"a/b","is_dir":false}
{"seq":6,"time":"2026-11-20T21:04:05.000000067Z","type":"rename","path":"n","is_dir":true}
{"seq":7,"time":"2026-11-20T21:04:05.000000067Z","type":"exchange","path":"p","old_path":"q","is_dir":false}
{"seq":8,"time":"2026-11-20T21:04:05.000000067Z","type":"attrib","path":".","is_dir":true}
{"seq":9,"time":"2026-11-20T21:04:05.000000067Z","type":"modify","path":"bad` + "\ufffd" + `\nname","path_b64":"YmFk/wpuYW1l","is_dir":false}
{"seq":10,"time":"2026-11-20T21:04:05.000000067Z","type":"overflow","path":".","is_dir":true}
`},
		{"template", Options{Format: "%T|%w|%f|%e|%:e|%o|%c|%p%%", TimeFormat: "%F %T.%N %s %j", Location: time.UTC}, `2026-11-20 21:04:05.000000067 1795208645 324|top/||READY|READY||0|0%
2026-11-20 21:04:05.000000067 1795208645 324|top/|a|CREATE,ISDIR|CREATE:ISDIR||0|7%
2026-11-20 21:04:05.000000067 1795208645 324|top/a/|b, "c"|CLOSE_WRITE,CLOSE|CLOSE_WRITE:CLOSE||0|0%
2026-11-20 21:04:05.000000067 1795208645 324|top/x/|y|RENAME|RENAME|top/a/b|12c|0%
2026-11-20 21:04:05.000000067 1795208645 324|top/a/|b|MOVED_FROM|MOVED_FROM||0|0%
2026-11-20 21:04:05.000000067 1795208645 324|top/|n|MOVED_TO,ISDIR|MOVED_TO:ISDIR||0|0%
2026-11-20 21:04:05.000000067 1795208645 324|top/|p|EXCHANGE|EXCHANGE|top/q|0|0%
2026-11-20 21:04:05.000000067 1795208645 324|top/||ATTRIB,ISDIR|ATTRIB:ISDIR||0|0%
2026-11-20 21:04:05.000000067 1795208645 324|top/|bad` + "\xff\nname" + `|MODIFY|MODIFY||0|0%
2026-11-20 21:04:05.000000067 1795208645 324|top/||Q_OVERFLOW|Q_OVERFLOW||0|0%
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := encode(t, c.o, sample); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestRoots(t *testing.T) {
	roots := []Root{{Arg: "/", IsDir: true}, {Arg: "d/", IsDir: true}, {Arg: "x/file"}}
	records := []tree.Record{
		{Type: tree.TypeModify, Root: 0, Path: "etc/passwd"},
		{Type: tree.TypeRename, Root: 1, Path: "n", OldRoot: 0, OldPath: "o"},
		{Type: tree.TypeModify, Root: 2, Path: "."},
	}
	got := encode(t, Options{Roots: roots}, records)
	if want := "/etc/ MODIFY passwd\n/ RENAME o -> d/n\nx/file MODIFY \n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	got = encode(t, Options{Roots: roots, Format: "json"}, records[1:2])
	if want := `"path":"n","root":"d/","old_path":"o","old_root":"/","is_dir":false}`; !strings.Contains(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestLossless takes any name through json and msgpack.
func TestLossless(t *testing.T) {
	check := func(name []byte, seq uint32, cookie uint32, pid int32) bool {
		if len(name) == 0 {
			name = []byte{0xff}
		}
		if pid < 0 {
			pid = -(pid + 1)
		}
		r := tree.Record{Type: tree.TypeRename, Path: string(name), OldPath: "é", Cookie: cookie, Pid: pid, Time: when}
		roots := newNamer([]Root{{Arg: "r", IsDir: true}})

		var j struct {
			Seq     uint64
			Time    time.Time
			Path    string
			PathB64 string `json:"path_b64"`
			OldPath string `json:"old_path"`
			Cookie  uint32
			Pid     int32
		}
		if err := json.Unmarshal((&jsonLines{names: roots}).append(nil, uint64(seq), &r), &j); err != nil {
			t.Log(err)
			return false
		}
		got := j.Path
		if !utf8.Valid(name) {
			b, err := base64.StdEncoding.DecodeString(j.PathB64)
			if err != nil {
				return false
			}
			got = string(b)
		} else if j.PathB64 != "" {
			return false
		}
		if got != string(name) || j.OldPath != "é" || j.Cookie != cookie || j.Pid != pid || j.Seq != uint64(seq) || !j.Time.Equal(when) {
			t.Logf("json %+v", j)
			return false
		}

		m := make(map[string]any)
		if err := mp.Unmarshal((&msgpack{names: roots}).append(nil, uint64(seq), &r), &m); err != nil {
			t.Log(err)
			return false
		}
		switch p := m["path"].(type) {
		case string:
			got = p
		case []byte:
			got = string(p)
		}
		at, ok := m["time"].(time.Time)
		return ok && at.Equal(when) && got == string(name) && m["old_path"] == "é" && m["type"] == "rename" && m["is_dir"] == false
	}
	if err := quick.Check(check, &quick.Config{MaxCount: 2000}); err != nil {
		t.Error(err)
	}
	for _, n := range []int{1, 31, 32, 255, 256, 65535, 65536, 70000} {
		if !check(bytes.Repeat([]byte{'a'}, n), 1, 1, 1) || !check(bytes.Repeat([]byte{0xff}, n), 1, 1, 1) {
			t.Errorf("name of %d bytes", n)
		}
	}
}

func TestFilter(t *testing.T) {
	for _, c := range []struct {
		name   string
		events []string
		set    func(*Filter) error
		want   string // types that pass, in order
	}{
		{name: "default", want: "ready create close_write rename rename rename exchange attrib modify overflow"},
		{name: "move", events: []string{"move"}, want: "ready rename rename rename exchange overflow"},
		{name: "moved_from", events: []string{"moved_from"}, want: "ready rename rename overflow"},
		{name: "several", events: []string{"create, CLOSE", "attrib"}, want: "ready create close_write attrib overflow"},
		{name: "exclude", set: func(f *Filter) error { return f.Exclude("^top/a$", false) }, want: "ready rename rename exchange attrib modify overflow"},
		{name: "fold", set: func(f *Filter) error { return f.Exclude("TOP/A", true) }, want: "ready rename rename exchange attrib modify overflow"},
		{name: "include", set: func(f *Filter) error { return f.Include("/y$", false) }, want: "ready rename overflow"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &Filter{}
			if _, err := f.SetEvents(c.events); err != nil {
				t.Fatal(err)
			}
			if c.set != nil {
				if err := c.set(f); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			w, err := New(&out, Options{Roots: []Root{{Arg: "top", IsDir: true}}, Filter: f})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for i := range sample {
				if ok, _ := w.Add(&sample[i]); ok {
					got = append(got, sample[i].Type.String())
				}
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("got  %s\nwant %s", s, c.want)
			}
		})
	}
}

func TestMaskOfEvents(t *testing.T) {
	var f Filter
	mask, err := f.SetEvents(nil)
	if err != nil || mask&(notify.Open|notify.Access|notify.CloseNowrite) != 0 || mask&notify.CloseWrite == 0 {
		t.Errorf("default mask %v, %v", mask, err)
	}
	if mask, err = f.SetEvents([]string{"all"}); err != nil || mask&notify.Access == 0 {
		t.Errorf("mask of all %v, %v", mask, err)
	}
	if _, err = f.SetEvents([]string{"create,nonsense"}); err == nil || !strings.Contains(err.Error(), `"nonsense"`) {
		t.Errorf("error %v", err)
	}
}

func TestBadOptions(t *testing.T) {
	for _, o := range []Options{{Format: "xml"}, {Format: "%w%"}, {Format: "%q"}, {Format: "%T", TimeFormat: "%Q"}} {
		if _, err := New(io.Discard, o); err == nil {
			t.Errorf("no error for %+v", o)
		}
	}
	if err := (&Filter{}).Exclude("(", false); err == nil {
		t.Error("no error for a bad expression")
	}
}

// gate is a writer that blocks until it is opened.
type gate struct {
	open chan struct{}
	out  bytes.Buffer
	err  error
}

func (g *gate) Write(b []byte) (int, error) {
	<-g.open
	if g.err != nil {
		return 0, g.err
	}
	return g.out.Write(b)
}

func TestPump(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	p := NewPump(g)
	for range 100 {
		if _, err := p.Write([]byte("line\n")); err != nil {
			t.Fatal(err)
		}
	}
	close(g.open)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(g.out.String(), "line\n"); got != 100 {
		t.Errorf("%d lines", got)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	broken := errors.New("broken")
	g = &gate{open: make(chan struct{}), err: broken}
	close(g.open)
	p = NewPump(g)
	if _, err := p.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	<-p.Failed()
	if _, err := p.Write([]byte("x")); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if err := p.Close(); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}

func BenchmarkJSON(b *testing.B) {
	w, err := New(io.Discard, Options{Format: "json", Roots: []Root{{Arg: "top", IsDir: true}}, Filter: &Filter{}})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for i := range b.N {
		if _, err := w.Add(&sample[i%len(sample)]); err != nil {
			b.Fatal(err)
		}
	}
}
