package ignore

import "strings"

// Scope is what holds in one directory and, as far as nothing is added, in those below it. A nil Scope leaves
// nothing out.
type Scope struct {
	up    *Scope
	base  string // the directory of rules, below the root; "" is the root
	rules *Rules
	// first are the patterns that come before those of all files.
	first *Rules
}

// Top is the scope of a root, by patterns that were given for it. It is nil if there are none.
func Top(patterns []string) *Scope {
	first := Parse([]byte(strings.Join(patterns, "\n")))
	if first == nil {
		return nil
	}
	return &Scope{first: first}
}

// In returns the scope of the directory dir (below the root, with slashes; "" is the root), which has the rules,
// nil for none, where s is that of the directory above it.
func (s *Scope) In(dir string, rules *Rules) *Scope {
	if rules == nil {
		return s
	}
	n := &Scope{up: s, base: dir, rules: rules}
	if s != nil {
		n.first = s.first
	}
	return n
}

// Ignored reports whether path (below the root, with slashes) is left out, where s is the scope of the directory
// that it is in, and that directory is not left out itself.
func (s *Scope) Ignored(path string, isDir bool) bool {
	if s == nil {
		return false
	}
	v := s.first.Match(path, isDir)
	for ; v == Undecided && s != nil; s = s.up {
		below := path
		if s.base != "" {
			below = path[len(s.base)+1:]
		}
		v = s.rules.Match(below, isDir)
	}
	return v == Leave
}

// IgnoredPath is Ignored for a path of whose directories nobody has asked yet. It knows only
// the rules that s has.
func (s *Scope) IgnoredPath(path string, isDir bool) bool {
	if s == nil {
		return false
	}
	for i := 0; i < len(path); i++ {
		if path[i] == '/' && s.Ignored(path[:i], true) {
			return true
		}
	}
	return s.Ignored(path, isDir)
}
