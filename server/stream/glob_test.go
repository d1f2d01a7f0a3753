package stream

import (
	"strings"
	"testing"

	"github.com/heraldfs/heraldfs/protocol"
)

func placeOf(path string) protocol.Place {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return protocol.Place{Dir: path[:i], Name: path[i+1:]}
	}
	return protocol.Place{Name: path}
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"*.go", []string{"a.go", "x/y/a.go", ".go"}, []string{"a.goo", "go", "a.go/x"}},
		{"a?c", []string{"abc", "d/a\xffc"}, []string{"ac", "abbc"}},
		{"/a", []string{"a"}, []string{"x/a", "ab"}},
		{"src/*", []string{"src/a"}, []string{"src/a/b", "src", "xsrc/a"}},
		{"src/**", []string{"src/a", "src/a/b"}, []string{"src", "srcx/a"}},
		{"**/t/*.c", []string{"t/a.c", "x/t/a.c", "x/y/t/a.c"}, []string{"xt/a.c", "t/x/a.c"}},
		{"a/**/b", []string{"a/b", "a/x/b", "a/x/y/b"}, []string{"ab", "a/xb"}},
		{"**", []string{"a", "a/b"}, nil},
		{"[a-c]x", []string{"ax", "cx"}, []string{"dx", "x"}},
		{"[!a-c]x", []string{"dx", "\x80x"}, []string{"ax"}},
		{"d/[]a]", []string{"d/]", "d/a"}, []string{"d/b"}},
		{`\*`, []string{"*"}, []string{"a"}},
		{"a*b*c*d", []string{"abcd", "axbxcxd"}, []string{"abdc"}},
	} {
		g, err := compileGlob(c.pattern)
		if err != nil {
			t.Errorf("%q: %v", c.pattern, err)
			continue
		}
		for _, path := range c.yes {
			if !g.match(placeOf(path)) {
				t.Errorf("%q does not match %q", c.pattern, path)
			}
		}
		for _, path := range c.no {
			if g.match(placeOf(path)) {
				t.Errorf("%q matches %q", c.pattern, path)
			}
		}
	}
	for _, bad := range []string{"", "[a", "[]", strings.Repeat("a", protocol.MaxGlob+1)} {
		if _, err := compileGlob(bad); err == nil {
			t.Errorf("%q compiles", bad)
		}
	}
}

// naive matches by trying everything; s and p are short.
func naive(p, s string, start bool) bool {
	if p == "" {
		return s == ""
	}
	if strings.HasPrefix(p, "**") {
		rest := strings.TrimLeft(p, "*")
		if start && strings.HasPrefix(rest, "/") && naive(rest[1:], s, true) {
			return true
		}
		for i := 0; i <= len(s); i++ {
			if naive(rest, s[i:], false) {
				return true
			}
		}
		return false
	}
	if p[0] == '*' {
		for i := 0; ; i++ {
			if naive(p[1:], s[i:], false) {
				return true
			}
			if i == len(s) || s[i] == '/' {
				return false
			}
		}
	}
	if s == "" || p[0] != s[0] && (p[0] != '?' || s[0] == '/') {
		return false
	}
	return naive(p[1:], s[1:], p[0] == '/')
}

func FuzzGlob(f *testing.F) {
	f.Add("a/**/b", "a/x/b")
	f.Add("*a*?/**", "xa/b")
	f.Add("**/**a", "b/ca")
	f.Fuzz(func(t *testing.T, pattern, path string) {
		if len(pattern) > 12 || len(path) > 12 || strings.ContainsAny(pattern, "[\\") {
			_, _ = compileGlob(pattern)
			return
		}
		if path == "" || strings.HasSuffix(path, "/") || strings.HasPrefix(path, "/") {
			return
		}
		g, err := compileGlob(pattern)
		if err != nil || g.base {
			return
		}
		want := naive(strings.TrimPrefix(pattern, "/"), path, true)
		if got := g.match(placeOf(path)); got != want {
			t.Errorf("%q on %q: %v, want %v", pattern, path, got, want)
		}
	})
}

func TestFilter(t *testing.T) {
	f, err := newFilter(&protocol.Subscribe{Include: []string{"*.go"}, Exclude: []string{"vendor/**"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		e    entry
		want bool
	}{
		{entry{op: protocol.OpModify, from: placeOf("a.go")}, true},
		{entry{op: protocol.OpOpen, from: placeOf("a.go")}, false},
		{entry{op: protocol.OpModify, from: placeOf("vendor/a.go")}, false},
		{entry{op: protocol.OpRename, from: placeOf("a.tmp"), to: placeOf("a.go")}, true},
		{entry{op: protocol.OpRename, from: placeOf("a.go")}, true},
		{entry{op: protocol.OpRename, to: placeOf("b.go")}, true},
		{entry{op: protocol.OpRename, from: placeOf("a.tmp"), to: placeOf("b.tmp")}, false},
		{entry{lost: protocol.GapOverflow}, true},
	} {
		if got := f.wants(&c.e); got != c.want {
			t.Errorf("%s %v %v: %v", c.e.op, c.e.from, c.e.to, got)
		}
	}
}
