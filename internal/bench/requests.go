package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tracer counts FUSE requests of any daemon with the kernel's tracepoint, in a buffer of its own.
type tracer struct{ dir string }

const tracefs = "/sys/kernel/tracing"

// newTracer returns nil where there is no tracepoint.
func (b *bench) newTracer() (*tracer, error) {
	if _, err := os.Stat(tracefs + "/instances"); err != nil {
		if err := unix.Mount("bench", tracefs, "tracefs", 0, ""); err != nil {
			return nil, nil
		}
		b.later(func() error { return detach(tracefs) })
	}
	if _, err := os.Stat(tracefs + "/events/fuse/fuse_request_send"); err != nil {
		return nil, nil
	}
	t := &tracer{dir: fmt.Sprintf("%s/instances/heraldfs-bench-%d", tracefs, os.Getpid())}
	if err := os.Mkdir(t.dir, 0o700); err != nil {
		return nil, err
	}
	b.later(func() error { return unix.Rmdir(t.dir) })
	return t, t.set("buffer_size_kb", "4096")
}

func (t *tracer) set(file, text string) error {
	return os.WriteFile(filepath.Join(t.dir, file), []byte(text), 0)
}

var traced = regexp.MustCompile(`\(FUSE_(\w+)\)`)

// count returns the requests of the file system at point while f runs, by opcode.
func (t *tracer) count(point string, f func() error) (map[string]int, error) {
	const event = "events/fuse/fuse_request_send/"
	var st unix.Stat_t
	if err := unix.Stat(point, &st); err != nil {
		return nil, err
	}
	if err := errors.Join(t.set(event+"filter", fmt.Sprintf("connection == %d", st.Dev)), t.set("trace", ""), t.set(event+"enable", "1")); err != nil {
		return nil, err
	}
	err := f()
	// RELEASE and FORGET are sent when nobody waits for them any more.
	time.Sleep(20 * time.Millisecond)
	if err := errors.Join(err, t.set(event+"enable", "0")); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(t.dir, "trace"))
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for _, m := range traced.FindAllSubmatch(text, -1) {
		counts[string(m[1])]++
	}
	return counts, nil
}

// requestTimes is how often each operation is done.
const requestTimes = 50

// operation is a row of the table of requests.
type operation struct {
	name string
	// minimum is what the protocol allows where every answer that may be cached is, and permissions are
	// the kernel's to check.
	minimum string
	do      func(dir string, i int) error
}

func operations() []operation {
	name := func(dir, kind string, i int) string { return fmt.Sprintf("%s/%s%d", dir, kind, i) }
	write := func(path string, flags int) error {
		f, err := os.OpenFile(path, os.O_WRONLY|flags, 0o644)
		if err != nil {
			return err
		}
		_, err = f.WriteString("x")
		return errors.Join(err, f.Close())
	}
	var st unix.Stat_t
	return []operation{
		{"stat of what is known", "none", func(d string, i int) error { return unix.Lstat(name(d, "f", i), &st) }},
		{"absent name, the first time", "LOOKUP", func(d string, i int) error { return absent(name(d, "no", i)) }},
		{"absent name, again", "none", func(d string, i int) error { return absent(name(d, "no", i)) }},
		{"listing of what is known", "none", func(d string, _ int) error { _, err := os.ReadDir(d); return err }},
		{"open, read, close, the first time", "READ", func(d string, i int) error { return readAll(name(d, "f", i)) }},
		{"open, read, close, again", "none", func(d string, i int) error { return readAll(name(d, "f", i)) }},
		{"stat after the first read", "GETATTR", func(d string, i int) error { return unix.Lstat(name(d, "f", i), &st) }},
		{"getxattr", "GETXATTR", func(d string, i int) error {
			if _, err := unix.Lgetxattr(name(d, "f", i), "user.none", nil); err != unix.ENODATA && err != unix.EOPNOTSUPP {
				return fmt.Errorf("getxattr: %w", err)
			}
			return nil
		}},
		{"create, write, close", "LOOKUP CREATE GETXATTR WRITE GETATTR", func(d string, i int) error {
			return write(name(d, "n", i), os.O_CREATE|os.O_EXCL)
		}},
		{"truncate, write, close", "SETATTR WRITE", func(d string, i int) error { return write(name(d, "n", i), os.O_TRUNC) }},
		{"append, close", "WRITE", func(d string, i int) error { return write(name(d, "n", i), os.O_APPEND) }},
		{"chmod, stat", "SETATTR", func(d string, i int) error {
			return errors.Join(os.Chmod(name(d, "n", i), 0o600), unix.Lstat(name(d, "n", i), &st))
		}},
		{"rename", "GETATTR 2 LOOKUP RENAME", func(d string, i int) error { return os.Rename(name(d, "n", i), name(d, "r", i)) }},
		{"link", "LOOKUP LINK GETATTR", func(d string, i int) error { return os.Link(name(d, "r", i), name(d, "l", i)) }},
		{"unlink", "UNLINK GETATTR", func(d string, i int) error { return os.Remove(name(d, "r", i)) }},
		{"mkdir", "LOOKUP MKDIR GETATTR", func(d string, i int) error { return os.Mkdir(name(d, "d", i), 0o755) }},
		{"rmdir", "RMDIR GETATTR", func(d string, i int) error { return os.Remove(name(d, "d", i)) }},
	}
}

func absent(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != unix.ENOENT {
		return fmt.Errorf("lookup of an absent name: %w", err)
	}
	return nil
}

// requestTable counts the requests that single operations cost.
func (b *bench) requestTable() error {
	trace, err := b.newTracer()
	if err != nil {
		return err
	}
	if trace == nil {
		b.say("requests: skipped, this kernel has no tracepoints for FUSE")
		return nil
	}
	src, err := b.source("requests")
	if err != nil {
		return err
	}
	peers := b.peers()[1:]
	header := []string{"operation"}
	for _, p := range peers {
		header = append(header, p.name)
	}
	t := b.report.add("FUSE requests of an operation", append(header, "the protocol's minimum")...)
	rows := make([][]string, len(operations()))
	for k, p := range peers {
		dir := filepath.Join(src, fmt.Sprint(k))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		for i := range requestTimes {
			if err := os.WriteFile(fmt.Sprintf("%s/f%d", dir, i), []byte("text"), 0o644); err != nil {
				return err
			}
		}
		m, err := p.open(b, dir)
		if err != nil {
			return err
		}
		if _, _, err := lstatWalk(m.point); err != nil {
			return errors.Join(err, m.close())
		}
		for r, op := range operations() {
			counts, err := trace.count(m.point, func() error {
				return repeat(requestTimes, func(i int) error { return op.do(m.point, i) })
			})
			if err != nil {
				return errors.Join(fmt.Errorf("%s: %s: %w", p.name, op.name, err), m.close())
			}
			rows[r] = append(rows[r], perOperation(counts))
		}
		if err := m.close(); err != nil {
			return err
		}
	}
	for r, op := range operations() {
		t.row(append(append([]string{op.name}, rows[r]...), op.minimum)...)
	}
	t.note("Counted with the kernel's tracepoint over %d operations in one directory; what came for less than half of them is left out. FORGETs are not counted.", requestTimes)
	t.note("GETATTR is of the directory, whose permissions the kernel checks anew after each change in it. GETXATTR asks for security.capability before the first write. RELEASE is not waited for.")
	return nil
}

func perOperation(counts map[string]int) string {
	var words []string
	for _, op := range slices.Sorted(maps.Keys(counts)) {
		n := (counts[op] + requestTimes/2) / requestTimes
		switch {
		case n == 0 || strings.HasSuffix(op, "FORGET"):
		case n == 1:
			words = append(words, op)
		default:
			words = append(words, fmt.Sprintf("%d %s", n, op))
		}
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, " ")
}
