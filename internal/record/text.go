package record

import (
	"strings"

	"github.com/heraldfs/heraldfs/watcher/tree"
)

// text is one line for each record.
type text struct {
	names *namer
	end   string
}

func (x *text) append(dst []byte, _ uint64, r *tree.Record) []byte {
	root, path := mainSide(r)
	dst, name := x.names.split(dst, root, path)
	dst = append(dst, ' ')
	dst = append(dst, events(r)...)
	dst = append(dst, ' ')
	dst = append(dst, name...)
	if both(r) {
		dst = append(dst, " -> "...)
		dst = x.names.full(dst, r.Root, r.Path)
	}
	return append(dst, x.end...)
}

// csv has three fields, or four for a rename: directory, events, name, new path.
type csv struct {
	names *namer
	end   string
	buf   []byte
}

func (c *csv) append(dst []byte, _ uint64, r *tree.Record) []byte {
	root, path := mainSide(r)
	dir, name := c.names.split(c.buf[:0], root, path)
	dst = csvField(dst, string(dir))
	dst = append(dst, ',')
	dst = csvField(dst, events(r))
	dst = append(dst, ',')
	dst = csvField(dst, name)
	if both(r) {
		c.buf = c.names.full(dir[:0], r.Root, r.Path)
		dst = append(dst, ',')
		dst = csvField(dst, string(c.buf))
	}
	return append(dst, c.end...)
}

// csvField quotes a field that needs it, as RFC 4180 and inotifywait have it.
func csvField(dst []byte, s string) []byte {
	if !strings.ContainsAny(s, "\",\n\r") && strings.Trim(s, " ") == s {
		return append(dst, s...)
	}
	dst = append(dst, '"')
	for i := 0; i < len(s); i++ {
		if s[i] == '"' {
			dst = append(dst, '"')
		}
		dst = append(dst, s[i])
	}
	return append(dst, '"')
}
