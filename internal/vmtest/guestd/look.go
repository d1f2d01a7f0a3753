package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/vmtest/wire"
)

// readAttr reads an extended attribute for what comes of it.
func readAttr(dir, attr string) error {
	var buf [64]byte
	for {
		_, err := unix.Getxattr(dir, attr, buf[:])
		if !errors.Is(err, unix.EINTR) {
			if err != nil {
				err = fmt.Errorf("%s of %s: %w", attr, dir, err)
			}
			return err
		}
	}
}

// lookAt returns what there is at path.
func lookAt(path string) (l wire.Look) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if errors.Is(err, unix.ENOENT) {
		return l
	}
	if err == nil {
		l.Mode, l.Nlink = st.Mode, uint64(st.Nlink)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			l.Content, err = os.ReadFile(path)
		case unix.S_IFLNK:
			l.Target, err = os.Readlink(path)
		}
	}
	if err != nil {
		l.Error = err.Error()
	}
	return l
}
