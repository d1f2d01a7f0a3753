// Package archtest holds the project to its architecture: who may import whom,
// one package comment for each package, no init functions, files of a length that can be read,
// and no test that skips itself where CI would not hear of it.
//
// It parses the sources and builds nothing, so that it also sees what this
// platform would not build. Import rules are for the program: test files may import anything that
// the compiler allows them, since a test of one layer often needs another.
package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// MaxLines is the length of the longest file that is allowed.
const MaxLines = 600

// source is one Go file.
type source struct {
	path      string // below the module's root, with slashes
	pkg       string
	test      bool
	generated bool
	lines     int
	comment   bool // has a package comment
	inits     int
	skips     []int // lines on which a test or benchmark is skipped
	imports   []string
}

// layer is a set of packages that have equal rights. Paths are below the module; one
// that ends in "/..." means what is below it as well.
type layer struct {
	name     string
	packages []string
	// imports is what its packages may import of ours, besides each other if together is set.
	imports  []string
	together bool
}

// layers is section "Packages" of docs/design.md. The first layer that has a package counts.
var layers = []layer{
	{name: "words", packages: []string{"notify"}},
	{name: "patterns", packages: []string{"internal/ignore"}},
	{name: "system calls", packages: []string{"internal/sys"}, imports: []string{"notify"}},
	{name: "notify", packages: []string{"notify/..."}, imports: []string{"notify", "internal/sys"}, together: true},
	{name: "watcher", packages: []string{"watcher/..."}, imports: []string{"notify/...", "internal/sys", "internal/ignore"}, together: true},
	{name: "protocol", packages: []string{"protocol/..."}, imports: []string{"notify"}, together: true},
	{name: "server", packages: []string{"server/..."}, imports: []string{"notify/...", "protocol/...", "internal/sys"}, together: true},
	{name: "agent", packages: []string{"internal/agent/..."}, imports: []string{"notify/...", "protocol/...", "internal/sys"}, together: true},
	{
		name:     "test bench",
		packages: []string{"internal/testenv/...", "internal/vmtest/...", "internal/inotest/...", "internal/opgen/...", "internal/archtest/...", "internal/e2e/...", "internal/nettest/..."},
		imports:  []string{"notify", "internal/sys"}, together: true,
	},
	{name: "benchmarks", packages: []string{"internal/bench/..."}, imports: []string{"notify/...", "protocol/...", "test bench"}, together: true},
	// What the commands share, and is no service to anybody else.
	{name: "commands' own", packages: []string{"internal/..."}, imports: []string{"notify/...", "watcher/...", "protocol/...", "internal/sys", "internal/ignore"}, together: true},
	{name: "commands", packages: []string{"cmd/..."}, imports: []string{"notify/...", "watcher/...", "protocol/...", "server/...", "internal/agent/...", "internal/sys", "internal/ignore", "commands' own"}},
}

// others are imports from outside that only some packages may have.
var others = []struct {
	prefix  string
	allowed []string
}{
	{"github.com/vmihailenco/msgpack", []string{"protocol/..."}},
	{"github.com/spf13/cobra", []string{"cmd/..."}},
	{"github.com/prometheus/client_golang", []string{"internal/metrics"}},
	{"github.com/fsnotify/fsnotify", []string{"watcher/portable/..."}},
}

// skipper is the package through which tests are skipped.
const skipper = "internal/testenv"

// pure are packages without a clock, a descriptor or a network, and what would give them one.
var pure = []string{"notify/coalesce"}

var impure = []string{"os", "os/...", "syscall", "net", "net/...", "io/ioutil", "golang.org/x/sys/..."}

// Check returns what is wrong in the module at root, one line each, with the file first.
func Check(root string) ([]string, error) {
	module, err := moduleName(filepath.Join(root, "go.mod"))
	if err != nil {
		return nil, err
	}
	sources, err := load(root)
	if err != nil {
		return nil, err
	}
	var wrong []string
	comments, programs := map[string][]string{}, map[string]bool{}
	for _, s := range sources {
		if s.lines > MaxLines && !s.generated {
			wrong = append(wrong, fmt.Sprintf("%s: %d lines, at most %d", s.path, s.lines, MaxLines))
		}
		if s.inits > 0 {
			wrong = append(wrong, fmt.Sprintf("%s: has an init function", s.path))
		}
		if s.comment {
			comments[s.pkg] = append(comments[s.pkg], s.path)
		}
		for _, line := range s.skips {
			if s.pkg != skipper {
				wrong = append(wrong, fmt.Sprintf("%s:%d: skips a test: only %s may, which fails it in CI", s.path, line, skipper))
			}
		}
		programs[s.pkg] = programs[s.pkg] || !s.test
		if !s.test {
			wrong = append(wrong, checkImports(module, s)...)
		}
	}
	for pkg, program := range programs {
		if n := comments[pkg]; program && len(n) == 0 {
			wrong = append(wrong, pkg+": no package comment")
		} else if len(n) > 1 {
			wrong = append(wrong, fmt.Sprintf("%s: package comments in %s", pkg, strings.Join(n, " and ")))
		}
	}
	slices.Sort(wrong)
	return wrong, nil
}

func checkImports(module string, s source) []string {
	var wrong []string
	for _, imp := range s.imports {
		if ours, ok := strings.CutPrefix(imp, module+"/"); ok {
			if why := forbidden(s.pkg, ours); why != "" {
				wrong = append(wrong, fmt.Sprintf("%s: imports %s: %s", s.path, ours, why))
			}
			continue
		}
		for _, other := range others {
			if (imp == other.prefix || strings.HasPrefix(imp, other.prefix+"/")) && !matches(s.pkg, other.allowed) {
				wrong = append(wrong, fmt.Sprintf("%s: imports %s: only %s may", s.path, imp, strings.Join(other.allowed, ", ")))
			}
		}
		if matches(s.pkg, pure) && matches(imp, impure) {
			wrong = append(wrong, fmt.Sprintf("%s: imports %s: the package is pure", s.path, imp))
		}
	}
	return wrong
}

// forbidden says why pkg may not import imp, or nothing.
func forbidden(pkg, imp string) string {
	from, to := layerOf(pkg), layerOf(imp)
	switch {
	case from == nil:
		return "package " + pkg + " belongs to no layer"
	case to == nil:
		return "it belongs to no layer"
	case from == to && from.together:
		return ""
	case from != to && (to.name != "test bench" || slices.Contains(from.imports, to.name)) && (slices.Contains(from.imports, to.name) || matches(imp, from.imports)):
		return ""
	}
	return fmt.Sprintf("layer %q may not import layer %q", from.name, to.name)
}

func layerOf(pkg string) *layer {
	for i := range layers {
		if matches(pkg, layers[i].packages) {
			return &layers[i]
		}
	}
	return nil
}

func matches(pkg string, patterns []string) bool {
	for _, p := range patterns {
		top, tree := strings.CutSuffix(p, "/...")
		if pkg == top || tree && strings.HasPrefix(pkg, top+"/") {
			return true
		}
	}
	return false
}

func moduleName(gomod string) (string, error) {
	text, err := os.ReadFile(gomod)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "module "); ok {
			return strings.TrimSpace(name), nil
		}
	}
	return "", fmt.Errorf("%s: no module line", gomod)
}

// load parses every Go file that is part of the module.
func load(root string) ([]source, error) {
	var sources []source
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() {
			if name != root && (base == "testdata" || base == "vendor" || base == "node_modules" || base[0] == '.' || base[0] == '_') {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") {
			return nil
		}
		s, err := parse(root, name)
		sources = append(sources, s)
		return err
	})
	return sources, err
}

func parse(root, name string) (source, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return source{}, err
	}
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return source{}, err
	}
	rel, err := filepath.Rel(root, name)
	if err != nil {
		return source{}, err
	}
	rel = filepath.ToSlash(rel)
	s := source{
		path: rel, pkg: path.Dir(rel), test: strings.HasSuffix(name, "_test.go"),
		generated: ast.IsGenerated(file), lines: strings.Count(string(text), "\n"), comment: file.Doc != nil,
	}
	for _, imp := range file.Imports {
		p, err := strconv.Unquote(imp.Path.Value)
		if err != nil {
			return source{}, err
		}
		s.imports = append(s.imports, p)
	}
	for _, call := range skips(file) {
		s.skips = append(s.skips, fset.Position(call.Pos()).Line)
	}
	for _, decl := range file.Decls {
		if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			s.inits++
		}
	}
	return s, nil
}
