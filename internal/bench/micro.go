package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	microRounds = 9
	microCalls  = 2000
	microBig    = 64 << 20
	coldRounds  = 7
)

// call is a system call, or a few, that is repeated on each mount.
type call struct {
	name string
	// run does the call n times below dir; serial is different each time.
	run func(dir string, n, serial int) error
}

func repeat(n int, f func(i int) error) error {
	for i := range n {
		if err := f(i); err != nil {
			return err
		}
	}
	return nil
}

func calls() []call {
	return []call{
		{"stat, cached", func(dir string, n, _ int) error {
			var st unix.Stat_t
			return repeat(n, func(int) error { return unix.Lstat(dir+"/file", &st) })
		}},
		{"getattr, forced (statx FORCE_SYNC)", func(dir string, n, _ int) error {
			var st unix.Statx_t
			return repeat(n, func(int) error {
				return unix.Statx(unix.AT_FDCWD, dir+"/file", unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
			})
		}},
		{"lookup of an absent name", func(dir string, n, serial int) error {
			var st unix.Stat_t
			return repeat(n, func(i int) error {
				if err := unix.Lstat(fmt.Sprintf("%s/no%d-%d", dir, serial, i), &st); err != unix.ENOENT {
					return fmt.Errorf("lookup of an absent name: %w", err)
				}
				return nil
			})
		}},
		{"open, close", func(dir string, n, _ int) error {
			return repeat(n, func(int) error { return withFile(dir+"/file", func(int) error { return nil }) })
		}},
		{"open, read 4 KiB, close", func(dir string, n, _ int) error {
			buf := make([]byte, 4096)
			return repeat(n, func(int) error {
				return withFile(dir+"/file", func(fd int) error { return preadFull(fd, buf, 0) })
			})
		}},
		{"read 4 KiB of a warm file", func(dir string, n, _ int) error {
			buf := make([]byte, 4096)
			return withFile(dir+"/big", func(fd int) error {
				return repeat(n, func(i int) error { return preadFull(fd, buf, int64(i%1000)*4096) })
			})
		}},
		{"write 4 KiB", func(dir string, n, _ int) error {
			buf := make([]byte, 4096)
			fd, err := unix.Open(dir+"/out", unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return repeat(n, func(i int) error {
				_, err := unix.Pwrite(fd, buf, int64(i%64)*4096)
				return err
			})
		}},
		{"create, close, unlink", func(dir string, n, _ int) error {
			return repeat(n, func(int) error {
				fd, err := unix.Open(dir+"/tmp", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
				if err != nil {
					return err
				}
				return errors.Join(unix.Close(fd), unix.Unlink(dir+"/tmp"))
			})
		}},
	}
}

func withFile(path string, f func(fd int) error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(f(fd), unix.Close(fd))
}

func preadFull(fd int, buf []byte, off int64) error {
	n, err := unix.Pread(fd, buf, off)
	if err == nil && n != len(buf) {
		return fmt.Errorf("read %d bytes of %d", n, len(buf))
	}
	return err
}

// micro times single calls.
func (b *bench) micro() error {
	src, err := b.source("micro")
	if err != nil {
		return err
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(src, "file"), make([]byte, 4096), 0o644),
		os.WriteFile(filepath.Join(src, "big"), make([]byte, microBig), 0o644),
	); err != nil {
		return err
	}
	mounts, err := b.all(src)
	if err != nil {
		return err
	}
	t := b.report.add(fmt.Sprintf("Single calls, medians of %d rounds of %d", microRounds, microCalls), comparedHeader("call", mounts)...)
	serial := 0
	for _, c := range calls() {
		times, err := b.inTurn(mounts, microRounds, func(m *mount) error {
			serial++
			return c.run(m.point, microCalls, serial)
		})
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		for _, d := range times {
			for i := range d {
				d[i] /= microCalls
			}
		}
		t.compared(c.name, times, false)
	}
	t.note("No target. A ratio of a call that must reach the daemon says how much a FUSE request costs beside a system call of half a microsecond.")
	return nil
}

func comparedHeader(first string, mounts []*mount) []string {
	header := []string{first, "native"}
	for _, m := range mounts[1:] {
		header = append(header, m.name, "ratio")
	}
	return append(header, "target")
}

// cold times the first use of a fresh mount. The native tree is warm: on tmpfs it always is.
func (b *bench) cold() error {
	src, err := b.source("cold")
	if err != nil {
		return err
	}
	tree := filepath.Join(src, "tree")
	for i := range walkDirs {
		dir := filepath.Join(tree, strconv.Itoa(i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for j := range walkPerDir {
			if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(j)), nil, 0o644); err != nil {
				return err
			}
		}
	}
	if err := os.WriteFile(filepath.Join(src, "big"), make([]byte, microBig), 0o644); err != nil {
		return err
	}
	first := []struct {
		name string
		run  func(dir string) error
	}{
		{fmt.Sprintf("stat of %d files", walkDirs*walkPerDir), func(dir string) error {
			_, _, err := lstatWalk(filepath.Join(dir, "tree"))
			return err
		}},
		{"read 64 MiB in sequence", readBig},
	}
	var t *table
	times := make([][][]time.Duration, len(first))
	var held cost
	for range coldRounds {
		depth := len(b.undo)
		mounts, err := b.all(src)
		if err != nil {
			return err
		}
		if t == nil {
			t = b.report.add(fmt.Sprintf("First use of a fresh mount, medians of %d", coldRounds), comparedHeader("what", mounts)...)
		}
		for k, f := range first {
			if times[k] == nil {
				times[k] = make([][]time.Duration, len(mounts))
			}
			for i, m := range mounts {
				if b.ctx.Err() != nil {
					return b.ctx.Err()
				}
				began := time.Now()
				if err := f.run(m.point); err != nil {
					return fmt.Errorf("%s: %s: %w", f.name, m.name, err)
				}
				times[k][i] = append(times[k][i], time.Since(began))
			}
		}
		if held, err = weigh(mounts[1].proc); err != nil {
			return err
		}
		if err := b.unwind(depth); err != nil {
			return err
		}
	}
	for k, f := range first {
		t.compared(f.name, times[k], false)
	}
	t.note("heraldfs held %s afterwards, with %d files and directories known to the kernel.", megabytes(held.rss), walkDirs*(walkPerDir+1))
	t.note("No target. The native tree on tmpfs is never cold, which makes these ratios the worst that there are.")
	return nil
}

func readBig(dir string) error {
	buf := make([]byte, 128<<10)
	return withFile(filepath.Join(dir, "big"), func(fd int) error {
		return repeat(microBig/len(buf), func(i int) error { return preadFull(fd, buf, int64(i)*int64(len(buf))) })
	})
}
