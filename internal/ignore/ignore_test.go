package ignore

import (
	"bytes"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

func TestTable(t *testing.T) {
	for _, c := range []struct {
		patterns, path string
		isDir          bool
		want           Verdict
	}{
		{"*.o", "a.o", false, Leave},
		{"*.o", "x/y/a.o", false, Leave},
		{"*.o\n!a.o", "a.o", false, Keep},
		{"!a.o\n*.o", "a.o", false, Leave},
		{"/a", "a", false, Leave},
		{"/a", "b/a", false, Undecided},
		{"b/a", "c/b/a", false, Undecided},
		{"**/b/a", "c/b/a", false, Leave},
		{"**/b/a", "b/a", false, Leave},
		{"a/**", "a", true, Undecided},
		{"a/**", "a/b/c", false, Leave},
		{"a/**/z", "a/z", false, Leave},
		{"a/**/z", "a/b/c/z", false, Leave},
		{"a/*/z", "a/b/c/z", false, Undecided},
		{"build/", "build", false, Undecided},
		{"build/", "x/build", true, Leave},
		{"\\#a", "#a", false, Leave},
		{"#a", "#a", false, Undecided},
		{"\\!a", "!a", false, Leave},
		{"a ", "a", false, Leave},
		{"a\\ ", "a ", false, Leave},
		{"a\r\nb", "a", false, Leave},
		{"\xef\xbb\xbfa", "a", false, Leave},
		{"[a-c]x", "bx", false, Leave},
		{"[!a-c]x", "bx", false, Undecided},
		{"[]x]", "]", false, Leave},
		{"[[:digit:]]", "7", false, Leave},
		{"[[:nothing:]]", "7", false, Undecided},
		{"[a", "[a", false, Undecided},
		{"a\\", "a\\", false, Undecided},
		{"\xff?", "\xff\xfe", false, Leave},
		{"", "a", false, Undecided},
		{"/", "a", true, Undecided},
	} {
		if got := Parse([]byte(c.patterns)).Match(c.path, c.isDir); got != c.want {
			t.Errorf("%q on %q (directory: %v): %v, want %v", c.patterns, c.path, c.isDir, got, c.want)
		}
	}
}

func TestScope(t *testing.T) {
	top := Top([]string{"*.tmp", "!keep.tmp"})
	root := top.In("", Parse([]byte("out\n!x.tmp\n")))
	sub := root.In("sub", Parse([]byte("/only\n!out\nkeep.tmp\n")))
	for _, c := range []struct {
		scope *Scope
		path  string
		want  bool
	}{
		{nil, "x.tmp", false},
		{top, "x.tmp", true},
		{root, "x.tmp", true}, // the command line comes first
		{root, "keep.tmp", false},
		{root, "out", true},
		{sub, "sub/out", false},
		{sub, "sub/only", true},
		{sub, "sub/deep/only", false},
		{sub, "sub/deep/out", false},
		{sub, "sub/keep.tmp", false},
	} {
		if got := c.scope.Ignored(c.path, false); got != c.want {
			t.Errorf("%q: %v, want %v", c.path, got, c.want)
		}
	}
	if !root.IgnoredPath("out/a/b", false) || root.IgnoredPath("a/b", false) {
		t.Error("a directory that is left out does not hide what is below it")
	}
	if Top(nil) != nil || Top([]string{"# nothing"}) != nil {
		t.Error("a scope without patterns")
	}
}

func TestRead(t *testing.T) {
	if _, err := Read(strings.NewReader(strings.Repeat("a\n", maxFile))); err == nil {
		t.Error("a file without bounds was read")
	}
	r, err := Read(strings.NewReader("a\n"))
	if err != nil || r.Match("a", false) != Leave {
		t.Errorf("%v, %v", r, err)
	}
}

// TestHostile: a pattern made to be tried in very many ways ends at once.
func TestHostile(t *testing.T) {
	text := strings.Repeat("a", 4000)
	for _, p := range []string{strings.Repeat("*a", 200) + "b", strings.Repeat("a*", 200) + "b", "x/" + strings.Repeat("*a", 100) + "b"} {
		if Parse([]byte(p)).Match(text, false) != Undecided {
			t.Errorf("%.20q matched", p)
		}
	}
}

// TestGit makes trees with files of patterns, and compares with what git makes of them.
func TestGit(t *testing.T) {
	git := testenv.NeedTool(t, "git")
	trees, cases := 120, 0
	if testing.Short() {
		trees = 20
	}
	left := 0
	for seed := range int64(trees) {
		dir := t.TempDir()
		g := &generator{rng: rand.New(rand.NewSource(seed)), dir: dir, rules: make(map[string][]byte)}
		g.tree("", 3)
		if len(g.paths) == 0 {
			continue
		}
		run := func(stdin string, args ...string) []byte {
			cmd := exec.Command(git, args...)
			cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
			cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir))
			out, err := cmd.Output()
			if exit, ok := err.(*exec.ExitError); err != nil && (!ok || exit.ExitCode() != 1) {
				t.Fatalf("git %v: %v", args, err)
			}
			return out
		}
		run("", "init", "-q")
		in := strings.Join(g.paths, "\x00") + "\x00"
		fields := bytes.Split(run(in, "check-ignore", "--no-index", "-v", "-n", "-z", "--stdin"), []byte{0})
		for i, path := range g.paths {
			f := fields[4*i : 4*i+4]
			if string(f[3]) != path {
				t.Fatalf("git tells of %q, asked about %q", f[3], path)
			}
			want := len(f[2]) > 0 && f[2][0] != '!'
			if want {
				left++
			}
			cases++
			if got := g.ignored(path); got != want {
				t.Errorf("seed %d: %q is left out: %v; git: %v, by %q line %s of %q", seed, path, got, want, f[2], f[1], f[0])
			}
		}
		if t.Failed() {
			for at, text := range g.rules {
				t.Logf("%s/.gitignore:\n%q", at, text)
			}
			return
		}
	}
	t.Logf("%d cases, %d left out", cases, left)
	if !testing.Short() && (cases < 5000 || left < cases/10 || left > cases*9/10) {
		t.Errorf("%d cases, %d left out: the generator proves little", cases, left)
	}
}

// generator makes a tree.
type generator struct {
	rng   *rand.Rand
	dir   string
	paths []string
	dirs  map[string]bool
	rules map[string][]byte
}

var names = []string{"a", "b", "c", "ab", "abc", "a.o", "b.o", "foo", "foobar", "bar", "#x", "!y", "z ", "[a]", "a-b", "\xffq", "]", "7", "a*b", "back\\slash"}

func (g *generator) pick(list []string) string { return list[g.rng.Intn(len(list))] }

func (g *generator) tree(at string, depth int) {
	if g.dirs == nil {
		g.dirs = make(map[string]bool)
	}
	if at == "" || g.rng.Intn(3) == 0 {
		var lines []byte
		for range 1 + g.rng.Intn(5) {
			lines = append(append(lines, g.line()...), g.pick([]string{"\n", "\n", "\n", "\r\n", " \n", "\n\n"})...)
		}
		g.rules[at] = lines
		if err := os.WriteFile(filepath.Join(g.dir, at, ".gitignore"), lines, 0o600); err != nil {
			panic(err)
		}
	}
	for _, name := range names {
		if g.rng.Intn(3) > 0 {
			continue
		}
		path := filepath.Join(at, name)
		full := g.dir + "/" + path
		g.paths = append(g.paths, path)
		if depth > 0 && g.rng.Intn(2) == 0 {
			if err := os.Mkdir(full, 0o700); err != nil {
				panic(err)
			}
			g.dirs[path] = true
			g.tree(path, depth-1)
		} else if err := os.WriteFile(full, nil, 0o600); err != nil {
			panic(err)
		}
	}
}

// line is a pattern: a name of the tree made more general, or pieces at random.
func (g *generator) line() string {
	var b strings.Builder
	if g.rng.Intn(4) == 0 {
		b.WriteByte('!')
	}
	if g.rng.Intn(4) == 0 {
		b.WriteByte('/')
	}
	for i := range 1 + g.rng.Intn(3) {
		if i > 0 {
			b.WriteByte('/')
		}
		switch g.rng.Intn(8) {
		case 0:
			b.WriteString("**")
		case 1:
			b.WriteString(g.pick([]string{"*", "?", "*.o", "a*", "*b", "?b", "a**", "**b", "***", "*a*", "f*r", "f?o*"}))
		case 2:
			b.WriteString(g.pick([]string{"[a-c]", "[!a]", "[^a-b]*", "[]]", "[[:alpha:]]", "[[:digit:]]", "[[:punct:]]x", "[\\]]", "[a", "[a-]", "[--0]", "[[:bad:]]",
				"[[:alpha]", "[a-c][!x]*", "[]-a]", "[\\a-c]", "[a-\\c]", "[[a]", "[[:upper:]0-9]"}))
		case 3:
			for range 1 + g.rng.Intn(4) {
				b.WriteString(g.pick([]string{"a", "b", "*", "**", "?", "\\a", "\\", "[ab]", ".", "o", "\\*", "foo", " ", "\\ "}))
			}
		default:
			name := g.pick(names)
			if g.rng.Intn(3) > 0 {
				name = strings.NewReplacer("#", "\\#", "!", "\\!", "[", "\\[", "*", "\\*", "\\", "\\\\", " ", "\\ ").Replace(name)
			}
			b.WriteString(name)
		}
	}
	if g.rng.Intn(4) == 0 {
		b.WriteByte('/')
	}
	return b.String()
}

// ignored asks about path from the top, as a watcher does.
func (g *generator) ignored(path string) bool {
	s := (*Scope)(nil).In("", Parse(g.rules[""]))
	for i := 0; i < len(path); i++ {
		if path[i] != '/' {
			continue
		}
		if dir := path[:i]; s.Ignored(dir, true) {
			return true
		} else {
			s = s.In(dir, Parse(g.rules[dir]))
		}
	}
	return s.Ignored(path, g.dirs[path])
}

func FuzzMatch(f *testing.F) {
	f.Add([]byte("a/**/[!b-d]*\n!x\\ \n[[:alpha:]"), "a/b/c", true)
	f.Add([]byte("**"), "", false)
	f.Fuzz(func(t *testing.T, text []byte, path string, isDir bool) {
		if len(text) > 1000 || len(path) > 1000 {
			return
		}
		r := Parse(text)
		if v := r.Match(path, isDir); v != r.Match(path, isDir) || v < Undecided || v > Keep {
			t.Fatal(fmt.Sprint(v))
		}
	})
}
