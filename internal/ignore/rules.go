package ignore

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
)

// FileName is the name of the files that hold patterns for their directory.
const FileName = ".heraldignore"

// maxFile bounds what is read of a file of patterns, in bytes.
const maxFile = 1 << 20

// Verdict is what Rules say about a name.
type Verdict int8

// Undecided leaves the name to the rules of the directories above.
const (
	Undecided Verdict = iota
	Leave             // leave it out
	Keep
)

// pattern is one line.
type pattern struct {
	text    string // without "!", the slash that anchors it, and the one at the end
	literal int    // so many bytes at the start of text stand for themselves
	keep    bool
	dirOnly bool
	anchor  bool // it is about a path, not about the last component of one
}

// Rules are the patterns of one file, in its order.
type Rules struct {
	patterns []pattern
}

// Parse reads the lines of a file of patterns. It returns nil if there is no pattern; what cannot match anything
// is no error, as in git.
func Parse(text []byte) *Rules {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	var r Rules
	for len(text) > 0 {
		line, rest, _ := bytes.Cut(text, []byte("\n"))
		text = rest
		line = bytes.TrimSuffix(line, []byte("\r"))
		line, _, _ = bytes.Cut(line, []byte{0})
		if p, ok := parseLine(string(line)); ok {
			r.patterns = append(r.patterns, p)
		}
	}
	if len(r.patterns) == 0 {
		return nil
	}
	return &r
}

// Read is Parse of what r has. More than a mebibyte is an error.
func Read(r io.Reader) (*Rules, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("more than %d bytes of patterns", maxFile)
	}
	return Parse(text), nil
}

func parseLine(line string) (pattern, bool) {
	if line == "" || line[0] == '#' {
		return pattern{}, false
	}
	p := pattern{text: trimSpaces(line)}
	p.text, p.keep = strings.CutPrefix(p.text, "!")
	p.text, p.dirOnly = strings.CutSuffix(p.text, "/")
	p.anchor = strings.Contains(p.text, "/")
	p.text = strings.TrimPrefix(p.text, "/")
	if p.literal = strings.IndexAny(p.text, `*?[\`); p.literal < 0 {
		p.literal = len(p.text)
	}
	return p, p.text != ""
}

// trimSpaces takes off the spaces at the end that no backslash protects.
func trimSpaces(s string) string {
	end := 0
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' {
			if i++; i == len(s) {
				return s
			}
			end = i + 1
		} else if s[i] != ' ' {
			end = i + 1
		}
	}
	return s[:end]
}

// Match says what the rules have to say about path, which is relative to their directory, with slashes. It
// does not ask about the directories that path leads through.
func (r *Rules) Match(path string, isDir bool) Verdict {
	if r == nil {
		return Undecided
	}
	for i := len(r.patterns) - 1; i >= 0; i-- {
		if p := &r.patterns[i]; p.match(path, isDir) {
			if p.keep {
				return Keep
			}
			return Leave
		}
	}
	return Undecided
}

func (p *pattern) match(path string, isDir bool) bool {
	if p.dirOnly && !isDir {
		return false
	}
	if !p.anchor {
		path = path[strings.LastIndexByte(path, '/')+1:]
	}
	// As in git the part without wildcards is compared by itself, so that "a**/b" is "a" and what "**/b" matches.
	rest, ok := strings.CutPrefix(path, p.text[:p.literal])
	if !ok {
		return false
	}
	return glob(p.text[p.literal:], rest)
}

// Equal reports whether r and o, either of which may be nil, have the same patterns.
func (r *Rules) Equal(o *Rules) bool {
	if r == nil || o == nil {
		return r == o
	}
	return slices.Equal(r.patterns, o.patterns)
}
