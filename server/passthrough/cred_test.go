package passthrough

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// caller is who a guest process is.
type caller struct {
	uid, gid int
	groups   []uint32
	umask    int
}

// as runs f on a thread with the caller's ids and umask, which ends with f.
func as(t testing.TB, c caller, f func() error) error {
	t.Helper()
	done := make(chan error, 2)
	go func() {
		// For a test that ends in f.
		defer func() { done <- errors.New("did not return") }()
		runtime.LockOSThread() // never unlocked: the thread must not be used again
		if unix.Gettid() == unix.Getpid() {
			// The first thread of a process does not end: do it on another one, while
			// this goroutine keeps the first from being taken.
			done <- as(t, c, f)
			runtime.UnlockOSThread()
			return
		}
		for _, call := range [][4]uintptr{
			{unix.SYS_UNSHARE, unix.CLONE_FS},
			{unix.SYS_UMASK, uintptr(c.umask)},
			{unix.SYS_SETGROUPS, uintptr(len(c.groups)), uintptr(unsafe.Pointer(unsafe.SliceData(c.groups)))},
			{unix.SYS_SETRESGID, uintptr(c.gid), uintptr(c.gid), uintptr(c.gid)},
			{unix.SYS_SETRESUID, uintptr(c.uid), uintptr(c.uid), uintptr(c.uid)},
		} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				done <- errno
				return
			}
		}
		done <- f()
	}()
	return <-done
}

// credWorld is a directory natively and another one in the mount.
type credWorld struct {
	native, mounted int
}

func credWorlds(t *testing.T, opts Options, mode os.FileMode, uid, gid int) credWorld {
	base := t.TempDir()
	native, src := base+"/native", base+"/src"
	mnt := ""
	for _, d := range []string{native, src} {
		must(t, os.Mkdir(d, 0o755))
	}
	mnt, _ = mountPassthrough(t, src, opts)
	open := func(dir string) int {
		must(t, os.Mkdir(dir+"/d", 0o755))
		must(t, os.Chown(dir+"/d", uid, gid))
		must(t, os.Chmod(dir+"/d", mode))
		fd, err := unix.Open(dir+"/d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	return credWorld{open(native), open(mnt)}
}

func statAt(dir int, name string) string {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return result(err)
	}
	return fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
}

// TestCreateAsCaller compares owner, group and mode of what other users make with what they get
// natively: setgid directories, group permissions by a supplementary group, set-id bits, denials.
func TestCreateAsCaller(t *testing.T) {
	const setgid = os.ModeSetgid
	for _, tc := range []struct {
		name     string
		mode     os.FileMode
		uid, gid int // of the directory
		groups   []uint32
	}{
		{"own", 0o755, 1000, 1000, nil},
		{"other", 0o755, 0, 0, nil},
		{"world", 0o777 | os.ModeSticky, 0, 0, nil},
		{"setgid", 0o777 | setgid, 0, 50, nil},
		{"setgid member", 0o777 | setgid, 0, 50, []uint32{50}},
		{"group", 0o770, 0, 50, []uint32{7, 50}},
		{"not in group", 0o770, 0, 50, []uint32{7}},
		{"root's group", 0o770, 0, 0, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := credWorlds(t, Options{}, tc.mode, tc.uid, tc.gid)
			for i, umask := range []int{0, 0o027} {
				run := func(dir int) (out []string) {
					name := func(s string) string { return fmt.Sprint(s, i) }
					must(t, as(t, caller{1000, 1000, tc.groups, umask}, func() error {
						fd, err := unix.Openat(dir, name("f"), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o6775)
						if err == nil {
							unix.Close(fd)
						}
						out = append(out, result(err), result(unix.Mkdirat(dir, name("d"), 0o777)),
							result(unix.Mknodat(dir, name("p"), unix.S_IFIFO|0o666, 0)),
							result(unix.Mknodat(dir, name("c"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))),
							result(unix.Symlinkat("x", dir, name("l"))),
							result(unix.Mknodat(dir, name("r"), unix.S_IFREG|0o2771, 0)))
						return nil
					}))
					for _, n := range []string{"f", "d", "p", "c", "l", "r"} {
						out = append(out, statAt(dir, name(n)))
					}
					return out
				}
				want, got := run(w.native), run(w.mounted)
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("umask %o: %v, natively %v", umask, got, want)
				}
			}
		})
	}
}

// TestThreadsKeepTheirIDs: after many creations as others, every thread is root again.
func TestThreadsKeepTheirIDs(t *testing.T) {
	w := credWorlds(t, Options{}, 0o777, 0, 0)
	for i := range 200 {
		must(t, as(t, caller{1000 + i%3, 1000, nil, 0}, func() error { return unix.Mkdirat(w.mounted, fmt.Sprint(i), 0o755) }))
	}
	tasks, err := os.ReadDir("/proc/self/task")
	must(t, err)
	for _, task := range tasks {
		data, err := os.ReadFile("/proc/self/task/" + task.Name() + "/status")
		if err != nil {
			continue // has ended
		}
		for _, key := range []string{"\nUid:", "\nGid:"} {
			_, line, _ := bytes.Cut(data, []byte(key))
			line, _, _ = bytes.Cut(line, []byte("\n"))
			f := bytes.Fields(line)
			if len(f) == 4 && string(f[0]) == "0" && string(f[3]) != "0" {
				t.Errorf("thread %s: %s %s", task.Name(), key[1:], line)
			}
		}
	}
}

// aclXattr encodes an ACL as the xattr system.posix_acl_* has it.
func aclXattr(entries ...[3]uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

const undefinedID = ^uint32(0)

// TestDefaultACL: a default ACL is inherited and replaces the umask, and an access ACL is obeyed.
func TestDefaultACL(t *testing.T) {
	base := t.TempDir()
	native, src := base+"/native", base+"/src"
	must(t, os.Mkdir(native, 0o755))
	must(t, os.Mkdir(src, 0o755))
	mnt, _ := mountPassthrough(t, src, Options{})
	acl := aclXattr([3]uint32{1, 7, undefinedID}, [3]uint32{2, 6, 1000}, [3]uint32{4, 5, undefinedID},
		[3]uint32{0x10, 7, undefinedID}, [3]uint32{0x20, 0, undefinedID})
	run := func(dir string) (out []string) {
		must(t, os.Mkdir(dir+"/d", 0o755))
		out = append(out, result(unix.Setxattr(dir+"/d", "system.posix_acl_default", acl, 0)))
		fd, err := unix.Open(dir+"/d/f", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o666)
		must(t, err)
		unix.Close(fd)
		must(t, os.Mkdir(dir+"/d/sub", 0o777))
		must(t, os.Mkdir(dir+"/plain", 0o777))
		out = append(out, dump(t, dir)...)
		dfd, err := unix.Open(dir+"/d", unix.O_PATH|unix.O_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(dfd)
		must(t, os.Chmod(dir+"/d", 0o755))
		for _, uid := range []int{1000, 1001} {
			must(t, as(t, caller{uid, uid, nil, 0}, func() error {
				fd, err := unix.Openat(dfd, "f", unix.O_WRONLY|unix.O_CLOEXEC, 0)
				if err == nil {
					unix.Close(fd)
				}
				out = append(out, result(err))
				return nil
			}))
		}
		return out
	}
	// Setting the ACL and the umask is root's; nested callers have threads of their own.
	var want, got []string
	must(t, as(t, caller{umask: 0o077}, func() error { want = run(native); return nil }))
	must(t, as(t, caller{umask: 0o077}, func() error { got = run(mnt); return nil }))
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q\nnatively\n%q", got, want)
	}
}

// TestKillPriv: a write, a truncation and a chown by an unprivileged user clear set-id bits
// exactly as natively.
func TestKillPriv(t *testing.T) {
	w := credWorlds(t, Options{}, 0o777, 1000, 1000)
	run := func(dir int) (out []string) {
		for i, mode := range []uint32{0o6777, 0o2767, 0o4777} {
			name := fmt.Sprint("f", i)
			fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o666)
			must(t, err)
			unix.Write(fd, []byte("hello"))
			unix.Close(fd)
			steps := map[string]func() error{
				"write": func() error {
					fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
					if err == nil {
						_, err = unix.Write(fd, []byte("x"))
						unix.Close(fd)
					}
					return err
				},
				"truncate": func() error {
					fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0)
					if err == nil {
						unix.Close(fd)
					}
					return err
				},
				"chown": func() error { return unix.Fchownat(dir, name, -1, 1001, 0) },
			}
			for _, step := range []string{"write", "truncate", "chown"} {
				must(t, unix.Fchownat(dir, name, 1000, 1000, 0))
				must(t, unix.Fchmodat(dir, name, mode, 0))
				must(t, as(t, caller{1000, 1000, []uint32{1001}, 0}, func() error {
					out = append(out, step+" "+result(steps[step]()))
					return nil
				}))
				out = append(out, statAt(dir, name))
			}
		}
		return out
	}
	want, got := run(w.native), run(w.mounted)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q\nnatively\n%q", got, want)
	}
}

func TestTrustedXattrsAreRoots(t *testing.T) {
	w := credWorlds(t, Options{}, 0o777, 1000, 1000)
	for _, dir := range []int{w.native, w.mounted} {
		fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		must(t, unix.Fsetxattr(fd, "trusted.t", []byte("1"), 0))
		must(t, unix.Fsetxattr(fd, "user.u", []byte("2"), 0))
		must(t, as(t, caller{1000, 1000, nil, 0}, func() error {
			buf := make([]byte, 256)
			n, err := unix.Flistxattr(fd, buf)
			if err != nil || string(buf[:n]) != "user.u\x00" {
				return fmt.Errorf("%q, %v", buf[:max(n, 0)], err)
			}
			if n, err = unix.Flistxattr(fd, nil); err != nil || n != len("user.u")+1 {
				return fmt.Errorf("size %d, %v", n, err)
			}
			if _, err := unix.Fgetxattr(fd, "trusted.t", buf); !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENODATA) {
				return fmt.Errorf("trusted.t: %v", err)
			}
			return nil
		}))
	}
}
