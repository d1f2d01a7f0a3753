package stream

import (
	"fmt"
	"math/bits"
	"strings"

	"github.com/heraldfs/heraldfs/protocol"
)

// glob is a compiled pattern. Matching takes one pass over the path with a set of
// states and no backtracking, since patterns come from peers.
type glob struct {
	tokens []token
	base   bool // matched against the name only
}

type token struct {
	kind  tokenKind
	b     byte      // literal
	class [4]uint64 // class
	// jump is how many tokens the empty string may pass over here.
	jump int
}

type tokenKind uint8

const (
	literal    tokenKind = iota
	anyByte              // ?
	class                // [...]
	star                 // *: stays here for any byte but a slash
	doubleStar           // **: stays here for any byte
)

// states has a bit for each position in a pattern of at most protocol.MaxGlob tokens, and
// one for the end.
type states [protocol.MaxGlob/64 + 1]uint64

func (s *states) set(i int)      { s[i/64] |= 1 << (i % 64) }
func (s *states) has(i int) bool { return s[i/64]&(1<<(i%64)) != 0 }

func compileGlob(pattern string) (*glob, error) {
	if pattern == "" || len(pattern) > protocol.MaxGlob {
		return nil, fmt.Errorf("glob of %d bytes: %w", len(pattern), protocol.ErrProtocol)
	}
	g := &glob{base: !strings.Contains(pattern, "/")}
	pattern = strings.TrimPrefix(pattern, "/")
	for i := 0; i < len(pattern); {
		switch c := pattern[i]; {
		case strings.HasPrefix(pattern[i:], "**"):
			for i < len(pattern) && pattern[i] == '*' {
				i++
			}
			t := token{kind: doubleStar, jump: 1}
			if i < len(pattern) && pattern[i] == '/' && g.atStart() {
				t.jump = 2 // "**/" is also nothing
			}
			g.tokens = append(g.tokens, t)
		case c == '*':
			g.tokens = append(g.tokens, token{kind: star, jump: 1})
			i++
		case c == '?':
			g.tokens = append(g.tokens, token{kind: anyByte})
			i++
		case c == '[':
			t, n, ok := parseClass(pattern[i:])
			if !ok {
				return nil, fmt.Errorf("glob %q: class without an end: %w", pattern, protocol.ErrProtocol)
			}
			g.tokens = append(g.tokens, t)
			i += n
		default:
			if c == '\\' && i+1 < len(pattern) {
				i++
			}
			g.tokens = append(g.tokens, token{kind: literal, b: pattern[i]})
			i++
		}
	}
	return g, nil
}

// atStart reports whether the next token begins a component.
func (g *glob) atStart() bool {
	if len(g.tokens) == 0 {
		return true
	}
	last := g.tokens[len(g.tokens)-1]
	return last.kind == literal && last.b == '/'
}

// parseClass reads "[a-z]" or "[!a-z]" at the start of s.
func parseClass(s string) (t token, n int, ok bool) {
	t.kind = class
	i, not := 1, false
	if i < len(s) && (s[i] == '!' || s[i] == '^') {
		i, not = i+1, true
	}
	for first := true; i < len(s); first = false {
		if s[i] == ']' && !first {
			if not {
				for w := range t.class {
					t.class[w] = ^t.class[w]
				}
			}
			t.class['/'/64] &^= 1 << ('/' % 64)
			return t, i + 1, true
		}
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		lo, hi := s[i], s[i]
		i++
		if i+1 < len(s) && s[i] == '-' && s[i+1] != ']' {
			hi = s[i+1]
			i += 2
		}
		for b := int(lo); b <= int(hi); b++ {
			t.class[b/64] |= 1 << (b % 64)
		}
	}
	return t, 0, false
}

func (t *token) takes(c byte) bool {
	switch t.kind {
	case literal:
		return c == t.b
	case anyByte, star:
		return c != '/'
	case class:
		return t.class[c/64]&(1<<(c%64)) != 0
	}
	return true
}

// match reports whether the place is what the pattern means.
func (g *glob) match(p protocol.Place) bool {
	var s states
	g.enter(&s, 0)
	if !g.base && p.Dir != "" {
		g.run(&s, p.Dir)
		g.run(&s, "/")
	}
	g.run(&s, p.Name)
	return s.has(len(g.tokens))
}

// enter adds position i, and what the empty string reaches from there. It goes on for one
// token or two: compileGlob leaves no two stars side by side.
func (g *glob) enter(s *states, i int) {
	s.set(i)
	if i == len(g.tokens) {
		return
	}
	if jump := g.tokens[i].jump; jump > 0 {
		g.enter(s, i+1)
		if jump == 2 {
			g.enter(s, i+2)
		}
	}
}

func (g *glob) run(s *states, text string) {
	for i := 0; i < len(text); i++ {
		var next states
		for w, word := range s {
			for ; word != 0; word &= word - 1 {
				at := w*64 + bits.TrailingZeros64(word)
				if at == len(g.tokens) || !g.tokens[at].takes(text[i]) {
					continue
				}
				if k := g.tokens[at].kind; k == star || k == doubleStar {
					// Not enter: a component has begun, so "**/" is no longer nothing.
					next.set(at)
				}
				g.enter(&next, at+1)
			}
		}
		*s = next
	}
}
