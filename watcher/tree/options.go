package tree

import (
	"errors"
	"log/slog"

	"github.com/heraldfs/heraldfs/notify"
)

// Sentinel errors, matched with errors.Is.
var (
	// ErrOverlap: one root is given twice, or lies in another one.
	ErrOverlap = errors.New("overlapping roots")
	// ErrRootGone: every root was deleted, so that nothing can come any more.
	ErrRootGone = errors.New("every watched path is gone")
)

// Options for Open. Roots is required.
type Options struct {
	// Roots are directories or files. A symlink is followed. A file is known by
	// its name: one that replaces it is watched as well.
	Roots []string
	// NoRecursive watches the entries of the roots themselves only.
	NoRecursive bool
	// Backend, Mask, DropPid, LimitedQueue and ForceInodeMarks are handed to
	// watcher.Open. What the table needs is added to Mask; so a Record may come
	// that Mask did not ask for.
	Backend         string
	Mask            notify.Mask
	DropPid         int
	LimitedQueue    bool
	ForceInodeMarks bool
	// MaxDirs bounds how many directories are remembered under a filesystem mark; 0 is 131,072.
	MaxDirs int
	// Ignore are patterns as of gitignore(5) for what is left out, in every root. They come before those that are
	// found in files called .heraldignore, which NoIgnoreFiles makes files like any other.
	Ignore        []string
	NoIgnoreFiles bool
	Logger        *slog.Logger
}

// tableMask is what the table needs to be told.
const tableMask = notify.Create | notify.Delete | notify.Moves | notify.DeleteSelf | notify.MoveSelf
