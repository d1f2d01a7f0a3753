package stream

import (
	"strings"

	"github.com/heraldfs/heraldfs/protocol"
)

// commonDir is the deepest directory that a and b are both in or below.
func commonDir(a, b string) string {
	n := 0
	for i := 0; ; i++ {
		endA, endB := i == len(a), i == len(b)
		if (endA || a[i] == '/') && (endB || b[i] == '/') {
			n = i
		}
		if endA || endB || a[i] != b[i] {
			return a[:n]
		}
	}
}

// clip shortens a directory that is too long to be sent to one above it.
func clip(dir string) string {
	for len(dir) > protocol.MaxPath {
		i := strings.LastIndexByte(dir[:protocol.MaxPath+1], '/')
		dir = dir[:max(i, 0)]
	}
	return dir
}

// span is a growing set of directories, told by one that holds them all.
type span struct {
	dir string
	any bool
}

func (s *span) add(dir string) {
	if !s.any {
		s.dir, s.any = dir, true
		return
	}
	s.dir = commonDir(s.dir, dir)
}

func (s *span) addEntry(e *entry) {
	if e.lost != 0 {
		s.add(e.scope)
		return
	}
	if e.from.Known() {
		s.add(e.from.Dir)
	}
	if e.to.Known() {
		s.add(e.to.Dir)
	}
}
