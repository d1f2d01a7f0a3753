package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// tool runs one of the programs that busybox does not have.
func tool(name string, args []string) error {
	if len(args) < 1 {
		return fmt.Errorf("%s: no path", name)
	}
	switch name {
	case "walk":
		return walk(args[0])
	case "posix":
		return posix(args[0])
	case "mapped":
		return lookMapped(args[0])
	case "vhost":
		return vhost(args[0])
	case "relay":
		return relay(args)
	}
	return fmt.Errorf("no tool %q", name)
}

// walk does what find and lstat do on everything below root, and prints how many and how long in nanoseconds.
func walk(root string) error {
	n := 0
	begin := time.Now()
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n++
		var st unix.Stat_t
		return unix.Lstat(path, &st)
	})
	fmt.Println(n, time.Since(begin).Nanoseconds())
	return err
}

// posix tries, in dir, what a file system must do, and reports everything that is wrong.
func posix(dir string) error {
	var errs []error
	for _, c := range []struct {
		name string
		run  func(dir string) error
	}{
		{"links", links}, {"modes", modes}, {"xattr", xattrs}, {"truncate", truncates},
		{"directory", directories}, {"rename", renames}, {"unlinked", unlinked}, {"nodes", nodes}, {"mmap", mapped},
	} {
		sub := filepath.Join(dir, c.name)
		err := os.Mkdir(sub, 0o755)
		if err == nil {
			err = c.run(sub)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.name, err))
		}
	}
	return errors.Join(errs...)
}

func expect(what string, ok bool) error {
	if !ok {
		return errors.New(what)
	}
	return nil
}

func links(dir string) error {
	a, b, s := dir+"/a", dir+"/b", dir+"/s"
	if err := errors.Join(os.WriteFile(a, []byte("x"), 0o600), os.Link(a, b), os.Symlink("a", s)); err != nil {
		return err
	}
	var sa, sb unix.Stat_t
	target, err := os.Readlink(s)
	return errors.Join(err, unix.Stat(a, &sa), unix.Stat(b, &sb),
		expect("two inodes", sa.Ino == sb.Ino), expect(fmt.Sprint("link count ", sa.Nlink), sa.Nlink == 2),
		expect("symlink "+target, target == "a"), os.Remove(a), unix.Stat(b, &sb), expect("link count", sb.Nlink == 1))
}

func modes(dir string) error {
	f := dir + "/f"
	when := time.Unix(1_000_000_000, 123_456_789)
	err := errors.Join(os.WriteFile(f, nil, 0o600), unix.Chmod(f, 0o4751), os.Chtimes(f, when, when))
	var st unix.Stat_t
	return errors.Join(err, unix.Stat(f, &st), expect(fmt.Sprintf("mode %o", st.Mode), st.Mode&0o7777 == 0o4751),
		expect("mtime", st.Mtim.Nano() == when.UnixNano()), os.Chown(f, 12, 34), unix.Stat(f, &st),
		expect(fmt.Sprintf("owner %d:%d", st.Uid, st.Gid), st.Uid == 12 && st.Gid == 34))
}

func xattrs(dir string) error {
	f := dir + "/f"
	big := bytes.Repeat([]byte("v"), 2000)
	err := errors.Join(os.WriteFile(f, nil, 0o600), unix.Setxattr(f, "user.small", []byte("1"), 0),
		unix.Setxattr(f, "user.big", big, 0))
	if err != nil {
		return err
	}
	buf := make([]byte, 4096)
	n, err := unix.Getxattr(f, "user.big", buf)
	l, lerr := unix.Listxattr(f, nil)
	_, gone := unix.Getxattr(f, "user.none", buf)
	return errors.Join(err, lerr, expect("value", n == len(big) && bytes.Equal(buf[:n], big)),
		expect(fmt.Sprint("list of ", l), l >= len("user.small.user.big.")), expect("ENODATA", gone == unix.ENODATA),
		unix.Removexattr(f, "user.small"))
}

func truncates(dir string) error {
	f, err := os.OpenFile(dir+"/f", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("tail"), 1<<20); err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		err = errors.Join(expect("size", st.Size() == 1<<20+4), f.Truncate(10))
	}
	if err != nil {
		return err
	}
	b, err := os.ReadFile(dir + "/f")
	return errors.Join(err, expect("zeros", bytes.Equal(b, make([]byte, 10))), unix.Fallocate(int(f.Fd()), 0, 0, 8192), f.Sync())
}

func directories(dir string) error {
	const n = 500
	for i := range n {
		if err := os.WriteFile(fmt.Sprintf("%s/file-%04d", dir, i), nil, 0o600); err != nil {
			return err
		}
	}
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != n || list[n-1].Name() != fmt.Sprintf("file-%04d", n-1) {
		return fmt.Errorf("%d entries, %w", len(list), err)
	}
	return expect("ENOTEMPTY", errors.Is(unix.Rmdir(dir), unix.ENOTEMPTY))
}

func renames(dir string) error {
	a, b := dir+"/a", dir+"/b"
	err := errors.Join(os.WriteFile(a, []byte("a"), 0o600), os.WriteFile(b, []byte("b"), 0o600))
	if err != nil {
		return err
	}
	err = errors.Join(
		expect("EEXIST", unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE) == unix.EEXIST),
		unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE))
	got, rerr := os.ReadFile(a)
	err = errors.Join(err, rerr, expect("exchange", string(got) == "b"), os.Rename(a, b))
	got, rerr = os.ReadFile(b)
	_, serr := os.Stat(a)
	return errors.Join(err, rerr, expect("replace", string(got) == "b"), expect("gone", errors.Is(serr, os.ErrNotExist)))
}

func unlinked(dir string) error {
	f, err := os.Create(dir + "/f")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(dir + "/f"); err != nil {
		return err
	}
	if _, err := f.WriteString("still"); err != nil {
		return err
	}
	b := make([]byte, 5)
	_, err = f.ReadAt(b, 0)
	return errors.Join(err, expect("content", string(b) == "still"))
}

func nodes(dir string) error {
	var st unix.Stat_t
	return errors.Join(unix.Mkfifo(dir+"/fifo", 0o600), unix.Mknod(dir+"/socket", unix.S_IFSOCK|0o600, 0),
		unix.Lstat(dir+"/fifo", &st), expect("fifo", st.Mode&unix.S_IFMT == unix.S_IFIFO))
}

func mapped(dir string) error {
	want := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	if err := os.WriteFile(dir+"/f", want, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(dir+"/f", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	same := sha256.Sum256(m) == sha256.Sum256(want)
	m[12345] = '!'
	err = errors.Join(expect("mapping", same), unix.Msync(m, unix.MS_SYNC), unix.Munmap(m))
	got, rerr := os.ReadFile(dir + "/f")
	return errors.Join(err, rerr, expect("store", len(got) == len(want) && got[12345] == '!'))
}

// lookMapped maps a file, prints what it sees, and, when the file /tmp/mapped.go is there, prints it again.
func lookMapped(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	fmt.Println(string(m))
	for {
		if _, err := os.Stat("/tmp/mapped.go"); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	fmt.Printf("%s\nend\n", m)
	return unix.Munmap(m)
}
