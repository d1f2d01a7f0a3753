//go:build linux

package tree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
)

// openRoots opens and checks what o.Roots names. Index i is o.Roots[i].
func openRoots(o *Options) (roots []rootDir, err error) {
	defer func() {
		if err != nil {
			closeRoots(roots)
		}
	}()
	if len(o.Roots) == 0 {
		return nil, fmt.Errorf("no path to watch: %w", os.ErrInvalid)
	}
	for _, arg := range o.Roots {
		r, err := openRoot(arg)
		if err != nil {
			return roots, err
		}
		roots = append(roots, r)
	}
	for i := range roots {
		for j := range roots {
			if i != j && overlap(&roots[i], &roots[j], o.NoRecursive) {
				return roots, fmt.Errorf("%w: %s is watched with %s already; leave one of them out",
					ErrOverlap, o.Roots[max(i, j)], o.Roots[min(i, j)])
			}
		}
	}
	return roots, nil
}

func closeRoots(roots []rootDir) {
	for _, r := range roots {
		unix.Close(r.fd)
	}
}

func openRoot(arg string) (rootDir, error) {
	abs, err := filepath.Abs(arg)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return rootDir{}, fmt.Errorf("watch %s: %w", arg, err)
	}
	r := rootDir{path: abs}
	st, err := os.Lstat(abs)
	if err != nil {
		return rootDir{}, fmt.Errorf("watch %s: %w", arg, err)
	}
	if !st.IsDir() {
		r.path, r.file = filepath.Split(abs)
		r.path = filepath.Clean(r.path)
	}
	r.fd, err = unix.Open(r.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EACCES) {
		// Enough to be told of what happens in it; listing it will say what is wrong.
		r.fd, err = unix.Open(r.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return rootDir{}, fmt.Errorf("watch %s: %w", arg, &os.PathError{Op: "open", Path: r.path, Err: err})
	}
	if r.obj, _, err = sys.ObjectOf(r.fd); err != nil {
		unix.Close(r.fd)
		return rootDir{}, fmt.Errorf("watch %s: %w", arg, err)
	}
	return r, nil
}

// overlap reports whether a covers b.
func overlap(a, b *rootDir, shallow bool) bool {
	switch {
	case a.obj == b.obj && a.file == b.file:
		return true
	case a.file != "":
		return false
	case b.file != "" && a.obj == b.obj:
		return true
	case shallow:
		return false
	}
	return a.path == "/" || a.path == b.path || strings.HasPrefix(b.path, a.path+"/")
}
