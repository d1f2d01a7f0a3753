//go:build linux

package tree

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/ignore"
	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// scan is what a directory and all below it looked like when we came to it.
type scan struct {
	obj      notify.Object
	entries  []scanEntry
	vanished bool // it could not be opened
	rules    *ignore.Rules
	ruled    bool // rules are what is in it
	// lost are directories that were in it at its time in the stream, but not when it was listed.
	lost map[notify.Object]*scan
}

type scanEntry struct {
	name  string
	isDir bool
	sub   *scan // of a directory; nil if it went away meanwhile
}

// scanner marks and lists directories.
type scanner struct {
	marker notify.Marker // nil: list only
	deny   func(path string, err error)
}

// scanScope is what is left out of a scan.
type scanScope struct {
	scope *ignore.Scope // of the directory above
	path  string        // of the directory, below its root
	files bool          // the patterns that are in directories count
}

// run takes over fd, which it closes, an O_PATH descriptor of a directory. path is for messages.
// Each directory is marked before it is listed. An error means that the
// directory cannot be watched and it would be wrong to go on without it.
func (s *scanner) run(ctx context.Context, fd int, path string, in scanScope) (*scan, error) {
	defer unix.Close(fd)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	obj, _, err := sys.ObjectOf(fd)
	if err != nil {
		if gone(err) {
			return &scan{vanished: true}, nil
		}
		return nil, fmt.Errorf("identify %s: %w", path, err)
	}
	sc := &scan{obj: obj}
	if s.marker != nil {
		if err := s.marker.Mark(obj, fd); err != nil {
			switch {
			case gone(err):
				return &scan{vanished: true}, nil
			case errors.Is(err, unix.EACCES):
				s.deny(path, err)
				return sc, nil
			case errors.Is(err, unix.ENOSPC):
				return nil, fmt.Errorf("watch %s: %w: too many watches for this user; raise fs.inotify.max_user_watches (sysctl), or run as root, where fanotify needs one mark for the whole file system", path, err)
			}
			return nil, fmt.Errorf("watch %s: %w", path, err)
		}
	}
	scope := in.scope
	if in.files {
		sc.rules, sc.ruled = s.readRules(fd, path), true
		scope = scope.In(in.path, sc.rules)
	}
	entries, err := list(fd)
	if err != nil && !gone(err) {
		s.deny(path, err)
	}
	for _, e := range entries {
		se := scanEntry{name: e.Name(), isDir: e.IsDir()}
		rel := join(in.path, se.name)
		if se.isDir && scope.Ignored(rel, true) {
			continue
		}
		if se.isDir {
			child, err := unix.Openat(fd, se.name, openFlags, 0)
			switch {
			case err == nil:
				if se.sub, err = s.run(ctx, child, path+"/"+se.name, scanScope{scope, rel, in.files}); err != nil {
					return nil, err
				}
				if se.sub.vanished {
					se.sub = nil
				}
			case gone(err):
			default:
				s.deny(path+"/"+se.name, err)
			}
		}
		sc.entries = append(sc.entries, se)
	}
	return sc, nil
}

// gone reports whether err means that a path does not lead to a directory any more.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) ||
		errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ESTALE) || errors.Is(err, errGone)
}
