package passthrough

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// result renders what a call returned.
func result(err error) string {
	if err == nil {
		return "ok"
	}
	if errno, ok := err.(unix.Errno); ok {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// statLine renders the fields that have to be the same in two trees.
func statLine(path string) string {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return result(err)
	}
	size := st.Size
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		size = 0
	}
	s := fmt.Sprintf("%o n%d %d:%d s%d r%x", st.Mode, st.Nlink, st.Uid, st.Gid, size, st.Rdev)
	// A fifo is the guest kernel's, which does not keep its times.
	if st.Mtim.Sec < 1e9 && st.Mode&unix.S_IFMT != unix.S_IFIFO { // set by the test
		s += fmt.Sprintf(" m%d.%d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	return s
}

// dump renders a tree: names, stat, content, link targets, xattrs.
func dump(t testing.TB, root string) []string {
	t.Helper()
	var lines []string
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		line := rel + " " + statLine(path)
		if rel != "." && d.Type()&fs.ModeType != statType(t, path) {
			line += " d_type differs"
		}
		switch {
		case d.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil && !os.IsPermission(err) {
				return err
			}
			line += fmt.Sprintf(" %q", data)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		lines = append(lines, line+" "+xattrs(path))
		return nil
	}))
	return lines
}

func statType(t testing.TB, path string) fs.FileMode {
	t.Helper()
	fi, err := os.Lstat(path)
	must(t, err)
	return fi.Mode() & fs.ModeType
}

func xattrs(path string) string {
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return result(err)
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	sort.Strings(names)
	var out []string
	for _, name := range names {
		if name == "" || name == "security.selinux" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			out = append(out, name+":"+result(err))
			continue
		}
		out = append(out, fmt.Sprintf("%s=%q", name, buf[:n]))
	}
	return strings.Join(out, ",")
}

// world is one side of a differential run.
type world struct {
	root string
	open map[string]*os.File
}

func (w *world) path(name string) string { return filepath.Join(w.root, name) }

func (w *world) close() {
	for _, f := range w.open {
		f.Close()
	}
}

// step is one operation with its arguments, the same for both worlds.
type step struct {
	op   string
	a, b string
	n    int
	data string
}

func (w *world) do(s step) string {
	a, b := w.path(s.a), w.path(s.b)
	switch s.op {
	case "write":
		fd, err := unix.Open(a, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|s.n, 0o644)
		if err != nil {
			return result(err)
		}
		n, err := unix.Write(fd, []byte(s.data))
		return fmt.Sprint(n, result(err), result(unix.Close(fd)))
	case "read":
		fd, err := unix.Open(a, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return result(err)
		}
		defer unix.Close(fd)
		buf := make([]byte, 256)
		n, err := unix.Pread(fd, buf, int64(s.n%16))
		return fmt.Sprintf("%q %s", buf[:max(n, 0)], result(err))
	case "hold":
		fd, err := unix.Open(a, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return result(err)
		}
		if old := w.open[s.b]; old != nil {
			old.Close()
		}
		w.open[s.b] = os.NewFile(uintptr(fd), a)
		return "ok"
	case "useheld":
		f := w.open[s.b]
		if f == nil {
			return "none"
		}
		var st unix.Stat_t
		_, werr := f.WriteAt([]byte(s.data), int64(s.n%64))
		buf := make([]byte, 64)
		n, _ := f.ReadAt(buf, 0)
		err := unix.Fstat(int(f.Fd()), &st)
		return fmt.Sprintf("%v %q %o %d %d %s", werr == nil, buf[:n], st.Mode, st.Nlink, st.Size, result(err))
	case "mkdir":
		return result(unix.Mkdir(a, uint32(s.n)))
	case "rmdir":
		return result(unix.Rmdir(a))
	case "unlink":
		return result(unix.Unlink(a))
	case "link":
		return result(unix.Link(a, b))
	case "symlink":
		return result(unix.Symlink(s.data, a))
	case "rename":
		return result(unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, uint(s.n)))
	case "mknod":
		return result(unix.Mknod(a, uint32(s.n), int(unix.Mkdev(1, 3))))
	case "chmod":
		return result(unix.Chmod(a, uint32(s.n)))
	case "chown":
		return result(unix.Lchown(a, s.n, s.n+1))
	case "truncate":
		return result(unix.Truncate(a, int64(s.n)))
	case "utimes":
		ts := []unix.Timespec{{Sec: int64(s.n), Nsec: 5}, {Sec: int64(s.n) + 1, Nsec: 7}}
		return result(unix.UtimesNanoAt(unix.AT_FDCWD, a, ts, unix.AT_SYMLINK_NOFOLLOW))
	case "setxattr":
		return result(unix.Lsetxattr(a, "user."+s.b, []byte(s.data), s.n))
	case "rmxattr":
		return result(unix.Lremovexattr(a, "user."+s.b))
	case "falloc":
		fd, err := unix.Open(a, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return result(err)
		}
		defer unix.Close(fd)
		return result(unix.Fallocate(fd, 0, int64(s.n), 10))
	case "stat":
		return statLine(a)
	case "list":
		entries, err := os.ReadDir(a)
		if err != nil {
			return "error"
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name()+e.Type().String())
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	panic(s.op)
}

func randomStep(r *rand.Rand) step {
	dirs := []string{"", "d0/", "d1/", "d0/s/"}
	name := func() string {
		return dirs[r.IntN(len(dirs))] + []string{"a", "b", "c", "d0", "d1", "s"}[r.IntN(6)]
	}
	s := step{a: name(), b: name(), data: fmt.Sprintf("data%d", r.IntN(1000))}
	ops := []string{"write", "write", "read", "mkdir", "mkdir", "rmdir", "unlink", "link", "symlink", "rename", "rename", "mknod",
		"chmod", "chown", "truncate", "utimes", "setxattr", "rmxattr", "falloc", "stat", "list", "hold", "useheld"}
	s.op = ops[r.IntN(len(ops))]
	switch s.op {
	case "write":
		s.n = []int{0, unix.O_TRUNC, unix.O_APPEND, unix.O_EXCL}[r.IntN(4)]
	case "mkdir":
		s.n = []int{0o755, 0o1777, 0o2755, 0o700}[r.IntN(4)]
	case "chmod":
		s.n = []int{0o755, 0o4755, 0o600, 0o6777, 0o444}[r.IntN(5)]
	case "chown":
		s.n = r.IntN(3) * 500
	case "rename":
		s.n = []int{0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_WHITEOUT, unix.RENAME_NOREPLACE | unix.RENAME_EXCHANGE}[r.IntN(7)]
	case "mknod":
		s.n = []int{unix.S_IFREG | 0o640, unix.S_IFIFO | 0o600, unix.S_IFCHR | 0o600, unix.S_IFSOCK | 0o666}[r.IntN(4)]
	case "truncate", "falloc":
		s.n = r.IntN(100)
	case "setxattr":
		s.b = []string{"x", "y"}[r.IntN(2)]
		s.n = []int{0, unix.XATTR_CREATE, unix.XATTR_REPLACE}[r.IntN(3)]
	case "rmxattr":
		s.b = []string{"x", "y"}[r.IntN(2)]
	case "hold", "useheld":
		s.b = []string{"h1", "h2"}[r.IntN(2)]
		s.n = r.IntN(64)
	case "utimes":
		s.n = 1000 + r.IntN(1000)
	}
	return s
}

// TestDifferential runs the same operations natively and through the mount, and compares every
// result, then the trees, then the mount with what is below it.
func TestDifferential(t *testing.T) {
	steps := 1500
	if testing.Short() {
		steps = 200
	}
	cached := Options{EntryTimeout: time.Hour, AttrTimeout: time.Hour, NegativeTimeout: time.Hour, KeepCache: true, NoOpendir: true}
	for _, fstype := range []string{"ext4", "tmpfs"} {
		for i, opts := range []Options{{}, cached, {FileHandles: HandleNever}, {FileHandles: HandleMandatory, MaxFDs: 1}} {
			for seed := range uint64(2) {
				t.Run(fmt.Sprintf("%s/%d/%d", fstype, i, seed), func(t *testing.T) {
					differential(t, fstype, opts, seed, steps)
				})
			}
		}
	}
}

func differential(t *testing.T, fstype string, opts Options, seed uint64, steps int) {
	base := t.TempDir()
	if fstype == "tmpfs" {
		base = testenv.Tmpfs(t)
	}
	native, src := base+"/native", base+"/src"
	must(t, os.Mkdir(native, 0o755))
	must(t, os.Mkdir(src, 0o755))
	mnt, _ := mountPassthrough(t, src, opts)
	a := &world{root: native, open: map[string]*os.File{}}
	b := &world{root: mnt, open: map[string]*os.File{}}
	defer a.close()
	defer b.close()
	r := rand.New(rand.NewPCG(seed, 42))
	for i := range steps {
		s := randomStep(r)
		if want, got := a.do(s), b.do(s); want != got {
			t.Fatalf("step %d %+v: %s, natively %s", i, s, got, want)
		}
	}
	want, got, below := dump(t, native), dump(t, mnt), dump(t, src)
	if !slices.Equal(got, want) {
		t.Errorf("trees differ:\n%s\nnatively\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !slices.Equal(got, below) {
		t.Errorf("the mount shows\n%s\nover\n%s", strings.Join(got, "\n"), strings.Join(below, "\n"))
	}
}
