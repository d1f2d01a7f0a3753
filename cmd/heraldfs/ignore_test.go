//go:build linux

package main

import (
	"fmt"
	"testing"

	"github.com/heraldfs/heraldfs/internal/ignore"
	"github.com/heraldfs/heraldfs/watcher/tree"
)

func TestSeen(t *testing.T) {
	s := ignore.Top([]string{"*.o", "out/"})
	for _, c := range []struct {
		typ       tree.Type
		old, path string
		want      string
	}{
		{tree.TypeCreate, "", "a.o", "[]"},
		{tree.TypeCreate, "", "out/x/y", "[]"},
		{tree.TypeCreate, "", "a", `[create "a"]`},
		{tree.TypeRename, "a", "b", `[rename "a" -> "b"]`},
		{tree.TypeRename, "a", "b.o", `[rename "a" -> ""]`},
		{tree.TypeRename, "a.o", "b", `[rename "" -> "b"]`},
		{tree.TypeRename, "a.o", "", "[]"},
		{tree.TypeRename, "", "b", `[rename "" -> "b"]`},
		{tree.TypeExchange, "a", "b.o", `[rename "a" -> "" rename "" -> "a"]`},
		{tree.TypeExchange, "a.o", "b", `[rename "b" -> "" rename "" -> "b"]`},
		{tree.TypeExchange, "a.o", "b.o", "[]"},
		{tree.TypeAttrib, "", ".", `[attrib "."]`},
	} {
		if got := fmt.Sprint(seen(s, tree.Record{Type: c.typ, OldPath: c.old, Path: c.path})); got != c.want {
			t.Errorf("%v %q %q: %s, want %s", c.typ, c.old, c.path, got, c.want)
		}
	}
}
