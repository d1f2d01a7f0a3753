package passthrough

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// writeNode opens a node, writes a byte and closes it, without a kernel in between.
func writeNode(fs *FS, id uint64) error {
	var out fuse.OpenOut
	if s := fs.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: id}, Flags: unix.O_WRONLY}, &out); !s.Ok() {
		return fmt.Errorf("open: %v", s)
	}
	defer fs.Release(nil, &fuse.ReleaseIn{Fh: out.Fh})
	if n, s := fs.Write(nil, &fuse.WriteIn{Fh: out.Fh}, []byte("y")); !s.Ok() || n != 1 {
		return fmt.Errorf("write: %d %v", n, s)
	}
	return nil
}

// modes runs f for each way to hold nodes, and caching.
func modes(t *testing.T, f func(t *testing.T, src, mnt string, fs *FS)) {
	for _, mode := range []HandleMode{HandlePrefer, HandleNever} {
		for _, timeout := range []time.Duration{0, time.Hour} {
			t.Run(fmt.Sprint(mode, timeout), func(t *testing.T) {
				src := t.TempDir()
				mnt, fs := mountPassthrough(t, src, Options{FileHandles: mode, EntryTimeout: timeout, AttrTimeout: timeout, KeepCache: timeout > 0, NoOpendir: timeout > 0})
				f(t, src, mnt, fs)
			})
		}
	}
}

// TestUnlinkedWhileOpen: the guest or the host unlinks a file that the guest has open.
func TestUnlinkedWhileOpen(t *testing.T) {
	modes(t, func(t *testing.T, src, mnt string, fs *FS) {
		for _, who := range []string{mnt, src} {
			path := mnt + "/f"
			must(t, os.WriteFile(path, []byte("content"), 0o640))
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			must(t, err)
			must(t, os.Remove(who+"/f"))
			// The number is free now; another file may get it.
			must(t, os.WriteFile(src+"/g", []byte("other file"), 0o644))
			var st unix.Stat_t
			must(t, unix.Fstat(int(f.Fd()), &st))
			if st.Size != 7 || st.Mode&0o777 != 0o640 {
				t.Errorf("fstat: size %d mode %o", st.Size, st.Mode)
			}
			if who == mnt && st.Nlink != 0 {
				t.Errorf("fstat: nlink %d", st.Nlink)
			}
			_, err = f.WriteAt([]byte("C"), 0)
			must(t, err)
			must(t, f.Truncate(4))
			must(t, f.Chmod(0o600))
			must(t, unix.Fsetxattr(int(f.Fd()), "user.x", []byte("1"), 0))
			buf := make([]byte, 16)
			if n, err := f.ReadAt(buf, 0); string(buf[:n]) != "Cont" {
				t.Errorf("read %q, %v", buf[:n], err)
			}
			// Opening it again, by its descriptor.
			again, err := os.OpenFile(fmt.Sprint("/proc/self/fd/", f.Fd()), os.O_RDONLY, 0)
			must(t, err)
			data, err := io.ReadAll(again)
			must(t, err)
			if string(data) != "Cont" {
				t.Errorf("reopened: %q", data)
			}
			again.Close()
			f.Close()
			if data, err := os.ReadFile(mnt + "/g"); string(data) != "other file" {
				t.Errorf("g: %q, %v", data, err)
			}
			must(t, os.Remove(mnt+"/g"))
		}
	})
}

// TestRemovedWorkingDirectory: a directory that a guest process is in.
func TestRemovedWorkingDirectory(t *testing.T) {
	modes(t, func(t *testing.T, src, mnt string, fs *FS) {
		must(t, os.Mkdir(mnt+"/d", 0o755))
		fd, err := unix.Open(mnt+"/d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		must(t, os.Remove(mnt+"/d"))
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Nlink != 0 {
			t.Errorf("fstat: %v nlink %d", err, st.Nlink)
		}
		if err := unix.Mkdirat(fd, "x", 0o755); err != unix.ENOENT {
			t.Errorf("mkdir in it: %v", err)
		}
		if err := unix.Fstatat(fd, "x", &st, 0); err != unix.ENOENT {
			t.Errorf("lookup in it: %v", err)
		}
	})
}

func TestTmpfile(t *testing.T) {
	modes(t, func(t *testing.T, src, mnt string, fs *FS) {
		fd, err := unix.Open(mnt, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o640)
		must(t, err)
		defer unix.Close(fd)
		_, err = unix.Write(fd, []byte("tmp"))
		must(t, err)
		must(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprint("/proc/self/fd/", fd), unix.AT_FDCWD, mnt+"/named", unix.AT_SYMLINK_FOLLOW))
		data, err := os.ReadFile(src + "/named")
		if string(data) != "tmp" {
			t.Errorf("%q, %v", data, err)
		}
		var a, b unix.Stat_t
		must(t, unix.Fstat(fd, &a))
		must(t, unix.Stat(mnt+"/named", &b))
		if a.Ino != b.Ino || b.Nlink != 1 || b.Mode&0o777 != 0o640 {
			t.Errorf("inodes %d and %d, nlink %d, mode %o", a.Ino, b.Ino, b.Nlink, b.Mode)
		}
		excl, err := unix.Open(mnt, unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0o640)
		must(t, err)
		defer unix.Close(excl)
		if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprint("/proc/self/fd/", excl), unix.AT_FDCWD, mnt+"/n2", unix.AT_SYMLINK_FOLLOW); err == nil {
			t.Error("an O_EXCL temporary file was linked")
		}
	})
}

// TestMappedWriteOfAppendFile: pages of a mapping go to their place although the kernel
// may send them through a file that was opened to append.
func TestMappedWriteOfAppendFile(t *testing.T) {
	src := t.TempDir()
	mnt, _ := mountPassthrough(t, src, Options{})
	must(t, os.WriteFile(mnt+"/f", bytes.Repeat([]byte("."), 8192), 0o644))
	f, err := os.OpenFile(mnt+"/f", os.O_RDWR|os.O_APPEND, 0)
	must(t, err)
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	// Through the kernel, not by a page fault of this process, which serves the mount.
	must(t, unix.Madvise(m, unix.MADV_POPULATE_WRITE))
	copy(m, "mapped")
	must(t, unix.Msync(m, unix.MS_SYNC))
	must(t, unix.Munmap(m))
	_, err = f.WriteString("appended")
	must(t, err)
	data, err := os.ReadFile(src + "/f")
	must(t, err)
	if len(data) != 8200 || string(data[:6]) != "mapped" || string(data[8192:]) != "appended" {
		t.Errorf("%d bytes, %q ... %q", len(data), data[:6], data[len(data)-8:])
	}
}

// TestAppendMeetsTheHost: what the host appended meanwhile is not overwritten.
func TestAppendMeetsTheHost(t *testing.T) {
	src := t.TempDir()
	mnt, _ := mountPassthrough(t, src, Options{AttrTimeout: time.Hour, EntryTimeout: time.Hour})
	must(t, os.WriteFile(mnt+"/log", []byte("one\n"), 0o644))
	f, err := os.OpenFile(mnt+"/log", os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer f.Close()
	h, err := os.OpenFile(src+"/log", os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = h.WriteString("two\n")
	must(t, err)
	must(t, h.Close())
	_, err = f.WriteString("three\n")
	must(t, err)
	if data, err := os.ReadFile(src + "/log"); string(data) != "one\ntwo\nthree\n" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestHolesAndCopies(t *testing.T) {
	modes(t, func(t *testing.T, src, mnt string, fs *FS) {
		f, err := os.Create(mnt + "/sparse")
		must(t, err)
		defer f.Close()
		must(t, f.Truncate(1<<20))
		_, err = f.WriteAt([]byte("data"), 512<<10)
		must(t, err)
		must(t, f.Sync())
		for whence, want := range map[int]int64{unix.SEEK_DATA: 512 << 10, unix.SEEK_HOLE: 0} {
			if off, err := unix.Seek(int(f.Fd()), 0, whence); err != nil || off != want {
				t.Errorf("lseek %d: %d, %v", whence, off, err)
			}
		}
		g, err := os.Create(mnt + "/copy")
		must(t, err)
		defer g.Close()
		from, to := int64(512<<10), int64(0)
		if n, err := unix.CopyFileRange(int(f.Fd()), &from, int(g.Fd()), &to, 4, 0); err != nil || n != 4 {
			t.Errorf("copy_file_range: %d, %v", n, err)
		}
		if data, err := os.ReadFile(mnt + "/copy"); string(data) != "data" {
			t.Errorf("copy: %q, %v", data, err)
		}
		must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 512<<10, 4096))
		buf := make([]byte, 4)
		if _, err := f.ReadAt(buf, 512<<10); err != nil || string(buf) != "\x00\x00\x00\x00" {
			t.Errorf("punched: %q, %v", buf, err)
		}
		if _, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS); err != unix.ENOTTY {
			t.Errorf("ioctl: %v", err)
		}
	})
}

// TestDirectorySeeks reads a big directory in small pieces from remembered places, with and without OPENDIR,
// two readers at once.
func TestDirectorySeeks(t *testing.T) {
	modes(t, func(t *testing.T, src, mnt string, fs *FS) {
		var want []string
		for i := range 2000 {
			name := fmt.Sprintf("%04d-%s", i, strings.Repeat("x", i%60))
			want = append(want, name)
			must(t, os.WriteFile(filepath.Join(src, name), nil, 0o644))
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				d, err := os.Open(mnt)
				if err != nil {
					t.Error(err)
					return
				}
				defer d.Close()
				var got []string
				for {
					names, err := d.Readdirnames(7)
					got = append(got, names...)
					if err == io.EOF {
						break
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
				slices.Sort(got)
				if !slices.Equal(got, want) {
					t.Errorf("%d names, want %d", len(got), len(want))
				}
			})
		}
		wg.Wait()
		must(t, os.Remove(mnt+"/"+want[7]))
		must(t, os.WriteFile(mnt+"/new", nil, 0o644))
		entries, err := os.ReadDir(mnt)
		must(t, err)
		if len(entries) != len(want) || slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == want[7] }) {
			t.Errorf("%d entries after a change", len(entries))
		}
	})
}

func TestReadOnly(t *testing.T) {
	src := t.TempDir()
	must(t, os.WriteFile(src+"/f", []byte("x"), 0o644))
	fs := newFS(t, src, Options{ReadOnly: true})
	f := mustLookup(t, fs, rootID, "f")
	root := fuse.InHeader{NodeId: rootID}
	file := fuse.InHeader{NodeId: f.NodeId}
	var entry fuse.EntryOut
	for name, s := range map[string]fuse.Status{
		"mknod":   fs.Mknod(nil, &fuse.MknodIn{InHeader: root, Mode: unix.S_IFREG}, "n", &entry),
		"mkdir":   fs.Mkdir(nil, &fuse.MkdirIn{InHeader: root}, "n", &entry),
		"symlink": fs.Symlink(nil, &root, "x", "n", &entry),
		"link":    fs.Link(nil, &fuse.LinkIn{InHeader: root, Oldnodeid: f.NodeId}, "n", &entry),
		"create":  fs.Create(nil, &fuse.CreateIn{InHeader: root}, "n", &fuse.CreateOut{}),
		"tmpfile": fs.Tmpfile(nil, &fuse.CreateIn{InHeader: root, Flags: unix.O_RDWR}, &fuse.CreateOut{}),
		"unlink":  fs.Unlink(nil, &root, "f"),
		"rmdir":   fs.Rmdir(nil, &root, "f"),
		"rename":  fs.Rename(nil, &fuse.RenameIn{InHeader: root, Newdir: rootID}, "f", "g"),
		"setattr": fs.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: file, Valid: fuse.FATTR_MODE}}, &fuse.AttrOut{}),
		"setx":    fs.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: file}, "user.x", nil),
		"rmx":     fs.RemoveXAttr(nil, &file, "user.x"),
		"write":   fs.Open(nil, &fuse.OpenIn{InHeader: file, Flags: unix.O_WRONLY}, &fuse.OpenOut{}),
		"trunc":   fs.Open(nil, &fuse.OpenIn{InHeader: file, Flags: unix.O_TRUNC}, &fuse.OpenOut{}),
	} {
		if s != fuse.EROFS {
			t.Errorf("%s: %v", name, s)
		}
	}
	mnt, _ := mountPassthrough(t, src, Options{ReadOnly: true})
	if data, err := os.ReadFile(mnt + "/f"); string(data) != "x" {
		t.Errorf("%q, %v", data, err)
	}
	if err := os.WriteFile(mnt+"/f", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v", err)
	}
}

func TestBirthTimeAndStatfs(t *testing.T) {
	modes(t, func(t *testing.T, src, mnt string, fs *FS) {
		must(t, os.WriteFile(src+"/f", nil, 0o644))
		var a, b unix.Statx_t
		must(t, unix.Statx(unix.AT_FDCWD, src+"/f", 0, unix.STATX_BTIME, &a))
		must(t, unix.Statx(unix.AT_FDCWD, mnt+"/f", 0, unix.STATX_BTIME, &b))
		if b.Mask&unix.STATX_BTIME == 0 || a.Btime != b.Btime {
			t.Errorf("birth time %v (%x), on the host %v", b.Btime, b.Mask, a.Btime)
		}
		var x, y unix.Statfs_t
		must(t, unix.Statfs(src, &x))
		must(t, unix.Statfs(mnt, &y))
		if x.Blocks != y.Blocks || x.Bsize != y.Bsize || x.Files != y.Files || x.Namelen != y.Namelen {
			t.Errorf("statfs %+v, on the host %+v", y, x)
		}
	})
}

// TestConcurrent lets guests and the host change the same names at once, while the kernel is
// made to forget. Afterwards the mount shows what is there.
func TestConcurrent(t *testing.T) {
	modes(t, func(t *testing.T, src, mnt string, fs *FS) {
		var wg sync.WaitGroup
		for i := range 4 {
			root := mnt
			if i == 3 {
				root = src
			}
			wg.Go(func() {
				w := &world{root: root, open: map[string]*os.File{}}
				defer w.close()
				r := rand.New(rand.NewPCG(uint64(i), 7))
				for range 400 {
					w.do(randomStep(r))
				}
			})
		}
		wg.Go(func() {
			for range 20 {
				os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0)
			}
		})
		wg.Wait()
		// What the guest has cached for an hour is not what is tested here.
		must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
		if fs.opts.EntryTimeout > 0 {
			return
		}
		if got, want := dump(t, mnt), dump(t, src); !slices.Equal(got, want) {
			t.Errorf("the mount shows\n%s\nover\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}
