package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher"
	"github.com/heraldfs/heraldfs/watcher/portable"
)

// portableTree is a Tree by package watcher/portable, which has paths where the kernel's backends have handles.
type portableTree struct {
	*portable.Watcher
	mask  notify.Mask
	roots []portable.Root
}

func openPortable(o Options) (*portableTree, error) {
	if len(o.Roots) == 0 {
		return nil, fmt.Errorf("no path to watch: %w", os.ErrInvalid)
	}
	roots := make([]portable.Root, len(o.Roots))
	for i, arg := range o.Roots {
		path, err := filepath.Abs(arg)
		if err == nil {
			path, err = filepath.EvalSymlinks(path)
		}
		if err != nil {
			return nil, fmt.Errorf("watch %s: %w", arg, err)
		}
		st, err := os.Lstat(path)
		if err != nil {
			return nil, fmt.Errorf("watch %s: %w", arg, err)
		}
		roots[i].Dir = path
		if !st.IsDir() {
			roots[i].Dir, roots[i].File = filepath.Split(path)
			roots[i].Dir = filepath.Clean(roots[i].Dir)
		}
	}
	for i := range roots {
		for j := range roots {
			if i != j && covers(roots[i], roots[j], o.NoRecursive) {
				return nil, fmt.Errorf("%w: %s is watched with %s already; leave one of them out",
					ErrOverlap, o.Roots[max(i, j)], o.Roots[min(i, j)])
			}
		}
	}
	w, err := portable.Open(portable.Options{Roots: roots, Shallow: o.NoRecursive, Ignore: o.Ignore,
		NoIgnoreFiles: o.NoIgnoreFiles, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	mask := o.Mask
	if mask == 0 {
		mask = notify.DefaultMask
	}
	return &portableTree{w, mask, roots}, nil
}

// covers reports whether what is told of b is told of a too.
func covers(a, b portable.Root, shallow bool) bool {
	switch {
	case a == b:
		return true
	case a.File != "":
		return false
	case a.Dir == b.Dir:
		return true
	case shallow:
		return false
	}
	sep := string(filepath.Separator)
	return strings.HasPrefix(b.Dir, strings.TrimSuffix(a.Dir, sep)+sep)
}

func (t *portableTree) backends() (names, why []string) {
	reason := "asked for"
	if runtime.GOOS != "linux" {
		reason = "the one for " + runtime.GOOS
	}
	return []string{watcher.Portable}, []string{reason}
}

// state looks at a path.
func (t *portableTree) state(i int, path string) State {
	r := t.roots[i]
	fi, err := os.Lstat(filepath.Join(r.Dir, r.File, filepath.FromSlash(path)))
	if err != nil {
		return State{Known: errors.Is(err, os.ErrNotExist)}
	}
	ino, ctime, ok := portable.Changed(fi)
	return State{Known: ok, Exists: ok, Ino: ino, Size: uint64(fi.Size()), Mtime: fi.ModTime().UnixNano(), Ctime: ctime}
}

func (t *portableTree) run(ctx context.Context, emit func([]Record)) error {
	var records []Record
	err := t.Run(ctx, func(events []portable.Event) {
		records = records[:0]
		for i := range events {
			ev := &events[i]
			if ev.Kind == portable.Modify && t.mask&notify.Modify == 0 || ev.Kind == portable.Attrib && t.mask&notify.Attrib == 0 {
				continue
			}
			records = append(records, Record{Type: portableType(ev.Kind), IsDir: ev.IsDir, Root: ev.Root, Path: ev.Path,
				OldRoot: ev.OldRoot, OldPath: ev.OldPath, Time: ev.Time})
		}
		emit(records)
	})
	if errors.Is(err, portable.ErrRootGone) {
		return ErrRootGone
	}
	return err
}

func portableType(k portable.Kind) Type {
	switch k {
	case portable.Create:
		return TypeCreate
	case portable.Delete:
		return TypeDelete
	case portable.Rename:
		return TypeRename
	case portable.Exchange:
		return TypeExchange
	case portable.Modify:
		return TypeModify
	case portable.Attrib:
		return TypeAttrib
	case portable.Ready:
		return TypeReady
	case portable.Overflow:
		return TypeOverflow
	}
	return TypeRescan
}
