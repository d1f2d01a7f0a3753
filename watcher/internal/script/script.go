//go:build linux

// Package script reads and performs the event scripts that every backend is tested with: lines with ">" are operations, done
// one by one; below each stand the events that it makes, in order.
package script

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Step is an operation and what it is expected to tell.
type Step struct {
	Do   string
	Want []string
}

// Read reads a script. Events that begin with "fs:" are those that only a filesystem mark hears.
func Read(path string, fsMarks bool) ([]Step, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var steps []Step
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		do, isOp := strings.CutPrefix(line, "> ")
		switch {
		case line == "", strings.HasPrefix(line, "#"):
		case isOp:
			steps = append(steps, Step{Do: do})
		case len(steps) == 0:
			return nil, fmt.Errorf("%s: an event before the first operation", path)
		default:
			only, isFS := strings.CutPrefix(line, "fs:")
			if last := &steps[len(steps)-1]; !isFS || fsMarks {
				last.Want = append(last.Want, only)
			}
		}
	}
	if len(steps) == 0 && sc.Err() == nil {
		return nil, fmt.Errorf("%s: no steps", path)
	}
	return steps, sc.Err()
}

// Perform does one operation. path makes a script's name one of the file system.
func Perform(line string, path func(string) string) error {
	f := strings.Fields(line)
	if len(f) < 2 {
		return fmt.Errorf("%q: no operation", line)
	}
	p, arg := path(f[1]), ""
	if len(f) > 2 {
		arg = f[2]
	}
	num := func(base int) (int64, error) { return strconv.ParseInt(arg, base, 64) }
	switch f[0] {
	case "mkdir":
		return unix.Mkdir(p, 0o755)
	case "create":
		return unix.Mknod(p, unix.S_IFREG|0o644, 0)
	case "fifo":
		return unix.Mknod(p, unix.S_IFIFO|0o644, 0)
	case "append":
		return put(p, unix.O_WRONLY|unix.O_APPEND, arg)
	case "write":
		return put(p, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, arg)
	case "truncate":
		n, err := num(10)
		if err != nil {
			return err
		}
		return unix.Truncate(p, n)
	case "chmod":
		n, err := num(8)
		if err != nil {
			return err
		}
		return unix.Chmod(p, uint32(n))
	case "utime":
		return os.Chtimes(p, time.Unix(1, 0), time.Unix(2, 0))
	case "symlink":
		return unix.Symlink(f[1], path(arg))
	case "link":
		return unix.Link(p, path(arg))
	case "unlink":
		return unix.Unlink(p)
	case "rmdir":
		return unix.Rmdir(p)
	case "rename":
		return unix.Rename(p, path(arg))
	case "exchange":
		return unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, path(arg), unix.RENAME_EXCHANGE)
	}
	return fmt.Errorf("%q: unknown operation", line)
}

func put(path string, flags int, text string) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte(text)); err != nil {
		unix.Close(fd)
		return err
	}
	return unix.Close(fd)
}
