package ignore

import "strings"

// outcome of an attempt. The last two end attempts that cannot do better further on, which keeps the time
// linear in the length of the text for each "*", whatever the pattern.
type outcome int8

const (
	mismatch  outcome = iota
	matched           // the whole of both
	exhausted         // the text was too short, and so is each of its tails
	atSlash           // only a "**" further left can get over a slash
)

// glob reports whether pattern matches the whole of text. "*" and "?" match no slash; "**" does between slashes.
func glob(pattern, text string) bool { return attempt(pattern, text) == matched }

func attempt(pattern, text string) outcome {
	for p := 0; p < len(pattern); text = text[1:] {
		c := pattern[p]
		if c == '*' {
			return star(pattern, p, text)
		}
		if text == "" {
			return exhausted
		}
		n, ok := one(pattern[p:], text[0])
		if !ok {
			return mismatch
		}
		p += n
	}
	if text != "" {
		return mismatch
	}
	return matched
}

// one matches c with what pattern begins with, and returns the length of that.
func one(pattern string, c byte) (n int, ok bool) {
	switch pattern[0] {
	case '?':
		return 1, c != '/'
	case '[':
		n, ok = class(pattern, c)
		return n, ok && c != '/'
	case '\\':
		return 2, len(pattern) > 1 && pattern[1] == c
	}
	return 1, pattern[0] == c
}

// star matches the asterisks at pattern[at] and what follows them.
func star(pattern string, at int, text string) outcome {
	rest := strings.TrimLeft(pattern[at:], "*")
	dirs := false
	if len(pattern)-len(rest)-at > 1 && (at == 0 || pattern[at-1] == '/') {
		dirs = rest == "" || rest[0] == '/' || strings.HasPrefix(rest, `\/`)
		if dirs && strings.HasPrefix(rest, "/") && attempt(rest[1:], text) == matched {
			return matched // no directory at all
		}
	}
	if rest == "" {
		if !dirs && strings.Contains(text, "/") {
			return atSlash
		}
		return matched
	}
	for ; text != ""; text = text[1:] {
		switch r := attempt(rest, text); {
		case r == mismatch:
			if text[0] == '/' && !dirs {
				return atSlash
			}
		case r != atSlash || !dirs:
			return r
		}
	}
	return exhausted
}

// class matches c with the bracket expression that pattern begins with, and returns its length. ok is false
// if c is not in it, and if it has no end.
func class(pattern string, c byte) (n int, ok bool) {
	i := 1
	negated := i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^')
	if negated {
		i++
	}
	in := false
	prev := byte(0) // what a range would begin with, 0 for nothing
	for first := true; ; first = false {
		if i >= len(pattern) {
			return 0, false
		}
		b := pattern[i]
		switch {
		case b == ']' && !first:
			return i + 1, in != negated
		case b == '\\':
			if i++; i == len(pattern) {
				return 0, false
			}
			b = pattern[i]
			in = in || b == c
			prev = b
		case b == '-' && prev != 0 && i+1 < len(pattern) && pattern[i+1] != ']':
			if i++; pattern[i] == '\\' {
				if i++; i == len(pattern) {
					return 0, false
				}
			}
			in = in || (prev <= c && c <= pattern[i])
			prev = 0
		case b == '[' && i+1 < len(pattern) && pattern[i+1] == ':':
			end := strings.IndexByte(pattern[i+2:], ']')
			if end < 0 {
				return 0, false
			}
			name, named := strings.CutSuffix(pattern[i+2:i+2+end], ":")
			if !named {
				in = in || c == '['
				prev = '['
				break
			}
			is := member(name)
			if is == nil {
				return 0, false
			}
			in = in || is(c)
			i += 2 + end
			prev = 0
		default:
			in = in || b == c
			prev = b
		}
		i++
	}
}

// member returns the character class of that name in the C locale, nil if there is none.
func member(name string) func(c byte) bool {
	switch name {
	case "alnum":
		return func(c byte) bool { return alpha(c) || digit(c) }
	case "alpha":
		return alpha
	case "blank":
		return func(c byte) bool { return c == ' ' || c == '\t' }
	case "cntrl":
		return func(c byte) bool { return c < 0x20 || c == 0x7f }
	case "digit":
		return digit
	case "graph":
		return graph
	case "lower":
		return lower
	case "print":
		return func(c byte) bool { return c == ' ' || graph(c) }
	case "punct":
		return func(c byte) bool { return graph(c) && !alpha(c) && !digit(c) }
	case "space":
		return func(c byte) bool { return c == ' ' || (c >= '\t' && c <= '\r') }
	case "upper":
		return upper
	case "xdigit":
		return func(c byte) bool { return digit(c) || (c|0x20 >= 'a' && c|0x20 <= 'f') }
	}
	return nil
}

func digit(c byte) bool { return c >= '0' && c <= '9' }
func lower(c byte) bool { return c >= 'a' && c <= 'z' }
func upper(c byte) bool { return c >= 'A' && c <= 'Z' }
func alpha(c byte) bool { return lower(c) || upper(c) }
func graph(c byte) bool { return c > ' ' && c < 0x7f }
