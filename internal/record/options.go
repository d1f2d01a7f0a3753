package record

import (
	"fmt"
	"strings"
	"time"

	"github.com/heraldfs/heraldfs/watcher/tree"
)

// Options for New. The zero value prints text.
type Options struct {
	// Format is text (also ""), json, csv, msgpack, or a template: anything with a "%".
	Format string
	// TimeFormat is for %T, in strftime's directives and %N for nanoseconds; empty is RFC 3339.
	TimeFormat string
	// Roots are the paths as they were given, in the order of Record.Root.
	Roots []Root
	// Null ends each record of text, csv, json and templates with a NUL byte instead of a newline.
	Null bool
	// NoNewline ends a template's record with nothing.
	NoNewline bool
	// Location is where times are told; nil is local for text and templates, and UTC for json.
	Location *time.Location
	Filter   *Filter
}

// Root is a watched path.
type Root struct {
	Arg   string
	IsDir bool
}

// encoder appends one record.
type encoder interface {
	append(dst []byte, seq uint64, r *tree.Record) []byte
}

// newEncoder understands o.Format.
func newEncoder(o *Options) (encoder, error) {
	end := "\n"
	if o.Null {
		end = "\x00"
	}
	names := newNamer(o.Roots)
	switch o.Format {
	case "", "text":
		return &text{names: names, end: end}, nil
	case "csv":
		return &csv{names: names, end: end}, nil
	case "json", "ndjson":
		return &jsonLines{names: names, end: end}, nil
	case "msgpack":
		return &msgpack{names: names}, nil
	}
	if !strings.Contains(o.Format, "%") {
		return nil, fmt.Errorf("format %q: give text, json, csv, msgpack or a template such as '%%w%%f %%e'", o.Format)
	}
	if o.NoNewline {
		end = ""
	}
	return newTemplate(o, names, end)
}

// namer tells paths with their root in front, as inotifywait does.
type namer struct {
	roots []Root
	many  bool
}

func newNamer(roots []Root) *namer { return &namer{roots: roots, many: len(roots) > 1} }

// split appends the directory with a slash at its end (or the root, if it is a file) to
// dir, and returns the name in it.
func (n *namer) split(dir []byte, root int, path string) (prefix []byte, name string) {
	arg := ""
	isDir := true
	if root >= 0 && root < len(n.roots) {
		arg, isDir = n.roots[root].Arg, n.roots[root].IsDir
	}
	dir = append(dir, arg...)
	if !isDir {
		return dir, ""
	}
	if !strings.HasSuffix(arg, "/") && arg != "" {
		dir = append(dir, '/')
	}
	if path == "." {
		return dir, ""
	}
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return append(dir, path[:i+1]...), path[i+1:]
	}
	return dir, path
}

func (n *namer) full(dst []byte, root int, path string) []byte {
	dst, name := n.split(dst, root, path)
	return append(dst, name...)
}

// main returns the side of r that a line is about: the source of a rename, if known.
func mainSide(r *tree.Record) (root int, path string) {
	if (r.Type == tree.TypeRename || r.Type == tree.TypeExchange) && r.OldPath != "" {
		return r.OldRoot, r.OldPath
	}
	return r.Root, r.Path
}

// eventNames are inotifywait's, as far as it has them.
var eventNames = [...]string{
	tree.TypeCreate: "CREATE", tree.TypeDelete: "DELETE", tree.TypeModify: "MODIFY", tree.TypeAttrib: "ATTRIB",
	tree.TypeOpen: "OPEN", tree.TypeAccess: "ACCESS", tree.TypeCloseWrite: "CLOSE_WRITE,CLOSE",
	tree.TypeCloseNowrite: "CLOSE_NOWRITE,CLOSE", tree.TypeRename: "RENAME", tree.TypeExchange: "EXCHANGE",
	tree.TypeReady: "READY", tree.TypeOverflow: "Q_OVERFLOW", tree.TypeRescan: "RESCAN",
}

// events are inotifywait's names of what r tells.
func events(r *tree.Record) string {
	s := ""
	switch {
	case r.Type == tree.TypeRename && r.Path == "":
		s = "MOVED_FROM"
	case r.Type == tree.TypeRename && r.OldPath == "":
		s = "MOVED_TO"
	case int(r.Type) < len(eventNames):
		s = eventNames[r.Type]
	}
	if r.IsDir && !r.Type.IsControl() {
		s += ",ISDIR"
	}
	return s
}

// both reports whether r has two known sides.
func both(r *tree.Record) bool { return r.Path != "" && r.OldPath != "" }
