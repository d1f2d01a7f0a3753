package main

import (
	"github.com/spf13/pflag"

	"github.com/heraldfs/heraldfs/internal/ignore"
	"github.com/heraldfs/heraldfs/watcher/tree"
)

// ignoreFlags are shared by `watch` and `serve`.
type ignoreFlags struct {
	patterns []string
	noFiles  bool
}

func (f *ignoreFlags) register(fs *pflag.FlagSet) {
	fs.StringArrayVar(&f.patterns, "ignore", nil, "leave out what matches this `pattern`, as of gitignore(5), with all that is below; may be\nrepeated, and the last that matches counts. Such patterns in a file "+ignore.FileName+" hold for\nits directory; those given here come first")
	fs.BoolVar(&f.noFiles, "no-ignore-files", false, "let "+ignore.FileName+" be a file like any other")
}

// seen is what is left of r where s leaves something out: a rename to or from there has one side.
func seen(s *ignore.Scope, r tree.Record) []tree.Record {
	hidden := func(path string) bool { return path == "" || path != "." && s.IgnoredPath(path, r.IsDir) }
	switch {
	case s == nil || r.Type.IsControl():
		return []tree.Record{r}
	case r.Type != tree.TypeRename && r.Type != tree.TypeExchange:
		if hidden(r.Path) {
			return nil
		}
		return []tree.Record{r}
	}
	from, to := hidden(r.OldPath), hidden(r.Path)
	switch {
	case from && to:
		return nil
	case !from && !to:
		return []tree.Record{r}
	}
	left, came := r, r
	left.Type, left.Path = tree.TypeRename, ""
	came.Type, came.OldPath = tree.TypeRename, ""
	switch {
	case r.Type == tree.TypeRename && from:
		return []tree.Record{came}
	case r.Type == tree.TypeRename:
		return []tree.Record{left}
	case from:
		left.OldPath = r.Path
	default:
		came.Path = r.OldPath
	}
	// Of an exchange one object left, and another one took its name.
	return []tree.Record{left, came}
}
