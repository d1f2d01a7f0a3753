package virtiofs

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/server/passthrough"
)

// forger is a guest that asks for what is outside of its share, and somebody who would notice.
type forger struct {
	t              *testing.T
	top            string
	q              *frontQueue
	canary         int    // inotify on everything beside the share
	dir, file      uint64 // nodes in the share
	up, down, root uint64 // links to a file outside, to a directory outside, and to /
}

func newForger(t *testing.T) *forger {
	t.Helper()
	testenv.Need(t, testenv.Root)
	f := &forger{t: t, top: testenv.Tmpfs(t)}
	share, outside := filepath.Join(f.top, "share"), filepath.Join(f.top, "outside")
	err := errors.Join(os.MkdirAll(filepath.Join(share, "dir"), 0o755), os.MkdirAll(filepath.Join(outside, "sub"), 0o755),
		os.Symlink("../outside/secret", filepath.Join(share, "up")), os.Symlink("../outside", filepath.Join(share, "down")), os.Symlink("/", filepath.Join(share, "root")))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(share, "file"), 100)
	writeFile(t, filepath.Join(share, "dir/file"), 100)
	writeFile(t, filepath.Join(outside, "secret"), 100)
	writeFile(t, filepath.Join(outside, "sub/secret"), 100)
	if f.canary, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(f.canary) })
	f.q = guestOf(t, share)
	f.dir, f.file = lookup(t, f.q, "dir"), lookup(t, f.q, "file")
	f.up, f.down, f.root = lookup(t, f.q, "up"), lookup(t, f.q, "down"), lookup(t, f.q, "root")
	for path, mask := range map[string]uint32{outside: unix.IN_ALL_EVENTS, filepath.Join(outside, "sub"): unix.IN_ALL_EVENTS,
		f.top: unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVE} {
		if _, err := unix.InotifyAddWatch(f.canary, path, mask); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// quiet fails the test if anything outside of the share was opened, read, changed, made or removed.
func (f *forger) quiet() {
	f.t.Helper()
	buf := make([]byte, 4096)
	// The kernel queues an event before the system call that it is about returns, so that there is nothing to wait for.
	if n, err := unix.Read(f.canary, buf); !errors.Is(err, unix.EAGAIN) {
		f.t.Errorf("outside of the share: %q, %v", buf[:max(n, 0)], err)
	}
}

func (f *forger) call(op uint32, node uint64, body ...[]byte) (unix.Errno, []byte) {
	f.t.Helper()
	return f.q.call1(0, fuseRequest(op, 9, node, body...), 4096)
}

// guestOf is a guest of a back-end of its own on dir.
func guestOf(t *testing.T, dir string) *frontQueue {
	t.Helper()
	f := dial(t, startServer(t, Options{}, func(Guest) (fuse.RawFileSystem, *fuse.MountOptions, error) {
		fs, err := passthrough.New(dir, passthrough.Options{ForeignPids: true})
		if err != nil {
			return nil, nil, err
		}
		o := fs.MountOptions()
		return closeFS{fs}, &o, nil
	}))
	f.setup(2, featureEventIdx)
	f.qs[1].initFuse()
	return f.qs[1]
}

// named are the requests that name something in a directory, each with that name.
var named = map[string]func(f *forger, dir uint64, name string) (uint32, uint64, []byte){
	"LOOKUP": func(_ *forger, dir uint64, name string) (uint32, uint64, []byte) { return 1, dir, cstr(name) },
	"SYMLINK": func(_ *forger, dir uint64, name string) (uint32, uint64, []byte) {
		return 6, dir, append(cstr(name), "x\x00"...)
	},
	"MKNOD": func(_ *forger, dir uint64, name string) (uint32, uint64, []byte) {
		return 8, dir, append(u32s(unix.S_IFREG|0o644, 0, 0, 0), cstr(name)...)
	},
	"MKDIR": func(_ *forger, dir uint64, name string) (uint32, uint64, []byte) {
		return 9, dir, append(u32s(0o755, 0), cstr(name)...)
	},
	"UNLINK": func(_ *forger, dir uint64, name string) (uint32, uint64, []byte) { return 10, dir, cstr(name) },
	"RMDIR":  func(_ *forger, dir uint64, name string) (uint32, uint64, []byte) { return 11, dir, cstr(name) },
	"LINK": func(f *forger, dir uint64, name string) (uint32, uint64, []byte) {
		return 13, dir, append(u64s(f.file), cstr(name)...)
	},
	"CREATE": func(_ *forger, dir uint64, name string) (uint32, uint64, []byte) {
		return 35, dir, append(u32s(unix.O_RDWR, 0o100644, 0, 0), cstr(name)...)
	},
	"RENAME from": func(_ *forger, dir uint64, name string) (uint32, uint64, []byte) {
		return 12, dir, append(append(u64s(1), cstr(name)...), "new\x00"...)
	},
	"RENAME to": func(_ *forger, dir uint64, name string) (uint32, uint64, []byte) {
		return 12, 1, append(append(u64s(dir), "file\x00"...), cstr(name)...)
	},
	"RENAME2 from": func(_ *forger, dir uint64, name string) (uint32, uint64, []byte) {
		return 45, dir, append(append(u64s(1), u32s(0, 0)...), append(cstr(name), "new\x00"...)...)
	},
	"RENAME2 exchange": func(_ *forger, dir uint64, name string) (uint32, uint64, []byte) {
		return 45, 1, append(append(u64s(dir), u32s(unix.RENAME_EXCHANGE, 0)...), append([]byte("file\x00"), cstr(name)...)...)
	},
}

// TestHostileNames: every request that takes a name refuses one that is a path, "." or "..", and every one in what is no directory of the
// share. A name ends at its NUL, so that what follows one hides nothing.
func TestHostileNames(t *testing.T) {
	f := newForger(t)
	before := state(t, filepath.Join(f.top, "share"))
	bad := []string{"", ".", "..", "/", "../outside/secret", "dir/../../outside/secret", "down/secret", "dir/file", "up/", "file/", "/etc/passwd", "..\x00x", ".\x00", "a/\x00b",
		"root/etc/passwd", strings.Repeat("n", 256), strings.Repeat("../", 80)}
	for op, request := range named {
		for _, dir := range []uint64{1, f.dir} {
			for _, name := range bad {
				n, node, body := request(f, dir, name)
				if errno, data := f.call(n, node, body); errno == 0 {
					t.Errorf("%s of %q: % x", op, name, data)
				}
			}
		}
		// Through links, through a file, and in nodes that the guest was never told of.
		for _, dir := range []uint64{f.up, f.down, f.root, f.file, 0, f.root + 1, 1 << 32, 1 << 63, ^uint64(1)} {
			for _, name := range []string{"secret", "etc", "sub", "new"} {
				n, node, body := request(f, dir, name)
				if errno, data := f.call(n, node, body); errno == 0 {
					t.Errorf("%s of %q in node %d: % x", op, name, dir, data)
				}
			}
		}
		f.quiet()
	}
	if after := state(t, filepath.Join(f.top, "share")); after != before {
		t.Errorf("the share was changed:\n%swas\n%s", after, before)
	}
}

// TestHostileNodes: a node that the guest has not been told of, or has forgotten, cannot be looked at, changed, opened or linked. What is done
// to a link is done to the link.
func TestHostileNodes(t *testing.T) {
	f := newForger(t)
	gone := lookup(t, f.q, "dir")
	if gone != f.dir {
		t.Fatalf("two nodes for a directory: %d, %d", gone, f.dir)
	}
	f.q.publish(f.q.place(0, fuseRequest(opForget, 9, gone, u64s(2)), 0))
	if _, _, ok := f.q.used(deadline); !ok {
		t.Fatal("FORGET is not taken")
	}
	before := state(t, filepath.Join(f.top, "share"))
	requests := []attack{
		{"GETATTR", 3, 0, [][]byte{make([]byte, 16)}}, {"chmod", 4, 0, [][]byte{setattr(1<<0, 0, 0o777)}},
		{"chown", 4, 0, [][]byte{setattr(1<<1|1<<2, 0, 0)}}, {"truncate", 4, 0, [][]byte{setattr(1<<3, 0, 0)}},
		{"utimes", 4, 0, [][]byte{setattr(1<<4|1<<5|1<<7|1<<8, 0, 0)}}, {"READLINK", 5, 0, nil},
		{"OPEN", 14, 0, [][]byte{u32s(unix.O_RDWR, 0)}}, {"OPENDIR", 27, 0, [][]byte{u32s(unix.O_RDONLY, 0)}},
		{"SETXATTR", opSetxattr, 0, [][]byte{u32s(4, 0, 0, 0), cstr("user.x"), []byte("evil")}}, {"GETXATTR", 22, 0, [][]byte{u32s(100, 0), cstr("user.x")}},
		{"LISTXATTR", 23, 0, [][]byte{u32s(100, 0)}}, {"REMOVEXATTR", 24, 0, [][]byte{cstr("user.x")}},
		{"ACCESS", 34, 0, [][]byte{u32s(4, 0)}}, {"STATX", 52, 0, [][]byte{make([]byte, 32)}},
	}
	for _, node := range []uint64{0, gone, f.root + 1, 1 << 31, 1 << 32, 1 << 63, ^uint64(1)} {
		for _, r := range requests {
			if errno, data := f.call(r.op, node, r.body...); errno == 0 {
				t.Errorf("%s of node %d: % x", r.name, node, data)
			}
		}
		for _, r := range []attack{{"LINK", 13, 1, [][]byte{u64s(node), cstr("new")}}, {"RENAME", 12, 1, [][]byte{u64s(node), cstr("file"), cstr("new")}}} {
			if errno, data := f.call(r.op, r.node, r.body...); errno == 0 {
				t.Errorf("%s to node %d: % x", r.name, node, data)
			}
		}
	}
	f.quiet()
	if after := state(t, filepath.Join(f.top, "share")); after != before {
		t.Errorf("the share was changed:\n%swas\n%s", after, before)
	}
	// These may change the link, and never what it leads to.
	for _, node := range []uint64{f.up, f.down, f.root} {
		for _, r := range requests {
			if errno, data := f.call(r.op, node, r.body...); errno == 0 && (r.op == 14 || r.op == 27 || r.name == "truncate") {
				t.Errorf("%s of a link: % x", r.name, data)
			}
		}
	}
	f.quiet()
}

// TestHostileHandles: what one guest has open is nothing to another, and a handle of nobody is none.
func TestHostileHandles(t *testing.T) {
	f := newForger(t)
	other := guestOf(t, filepath.Join(f.top, "outside"))
	secret := lookup(t, other, "secret")
	errno, opened := other.call1(0, fuseRequest(14, 9, secret, u32s(unix.O_RDWR, 0)), 256)
	if errno != 0 {
		t.Fatal(errno)
	}
	errno, list := other.call1(0, fuseRequest(27, 9, 1, u32s(unix.O_RDONLY, 0)), 256)
	if errno != 0 {
		t.Fatal(errno)
	}
	buf := make([]byte, 4096)
	unix.Read(f.canary, buf) // what the other guest has done in its own share
	for _, fh := range []uint64{u64At(opened), u64At(list), 0, 1, 2, 3, 4, 77, 1 << 31, 1 << 32, 1 << 63, ^uint64(0)} {
		for _, node := range []uint64{f.file, f.dir, 1, secret} {
			for _, r := range []attack{
				{"READ", opRead, node, [][]byte{u64s(fh, 0), u32s(100, 0), u64s(0, 0)}},
				{"WRITE", opWrite, node, [][]byte{u64s(fh, 0), u32s(4, 0), u64s(0), u32s(0, 0), []byte("evil")}},
				{"READDIR", 28, node, [][]byte{u64s(fh, 0), u32s(4000, 0), u64s(0, 0)}},
				{"READDIRPLUS", 44, node, [][]byte{u64s(fh, 0), u32s(4000, 0), u64s(0, 0)}},
				{"FALLOCATE", opFallocate, node, [][]byte{u64s(fh, 0, 9000), u32s(0, 0)}},
				{"LSEEK", 46, node, [][]byte{u64s(fh, 0), u32s(unix.SEEK_DATA, 0)}},
				{"COPY_FILE_RANGE", opCopyFileRange, node, [][]byte{u64s(fh, 0, f.file, fh, 0, 6, 0)}},
			} {
				if fh == 0 && (r.op == 28 || r.op == 44) {
					continue // directories are read without being opened
				}
				if errno, data := f.call(r.op, r.node, r.body...); errno == 0 {
					t.Errorf("%s of handle %d: % x", r.name, fh, data)
				}
			}
		}
	}
	f.quiet()
	if errno, b := other.call1(0, fuseRequest(opRead, 9, secret, u64s(u64At(opened), 0), u32s(100, 0), u64s(0, 0)), 4096); errno != 0 || len(b) != 100 {
		t.Errorf("the other guest's own handle: %v, %d bytes", errno, len(b))
	}
}

// TestHostileSizes: a size that a request claims is neither believed nor set aside memory for, and another guest is served meanwhile.
func TestHostileSizes(t *testing.T) {
	f := newForger(t)
	other := guestOf(t, filepath.Join(f.top, "share"))
	open := func(op uint32, node uint64, flags uint32) uint64 {
		errno, b := f.call(op, node, u32s(flags, 0))
		if errno != 0 {
			t.Fatalf("opcode %d: %v", op, errno)
		}
		return u64At(b)
	}
	fh, dh := open(14, f.file, unix.O_RDWR), open(27, 1, unix.O_RDONLY)
	const huge = ^uint32(0)
	requests := []attack{
		{"READ", opRead, f.file, [][]byte{u64s(fh, 0), u32s(huge, 0), u64s(0, 0)}},
		{"READ at the end", opRead, f.file, [][]byte{u64s(fh, 1<<63-1), u32s(huge, 0), u64s(0, 0)}},
		{"READ before the start", opRead, f.file, [][]byte{u64s(fh, ^uint64(0)), u32s(huge, 0), u64s(0, 0)}},
		{"READDIR", 28, 1, [][]byte{u64s(dh, 0), u32s(huge, 0), u64s(0, 0)}},
		{"READDIRPLUS", 44, 1, [][]byte{u64s(dh, 0), u32s(huge, 0), u64s(0, 0)}},
		{"READDIR far", 28, 1, [][]byte{u64s(dh, 1<<63-1), u32s(huge, 0), u64s(0, 0)}},
		{"GETXATTR", 22, f.file, [][]byte{u32s(huge, 0), cstr("user.x")}},
		{"LISTXATTR", 23, f.file, [][]byte{u32s(huge, 0)}},
		{"SETXATTR", opSetxattr, f.file, [][]byte{u32s(huge, 0, 0, 0), cstr("user.x"), []byte("evil")}},
		{"WRITE", opWrite, f.file, [][]byte{u64s(fh, 0), u32s(huge, 0), u64s(0), u32s(0, 0), []byte("xxxx")}},
		{"FALLOCATE", opFallocate, f.file, [][]byte{u64s(fh, 0, 1<<62), u32s(0, 0)}},
		{"COPY_FILE_RANGE", opCopyFileRange, f.file, [][]byte{u64s(fh, 1<<62, f.file, fh, 0, 1<<62, 0)}},
		{"IOCTL", 39, f.file, [][]byte{u64s(fh), u32s(0, 0), u64s(0), u32s(huge, huge)}},
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	total, n := m.TotalAlloc, uint64(0)
	for range 20 {
		for _, r := range requests {
			n++
			// call1 fails the test if the answer is longer than its room, or is none.
			errno, data := f.call(r.op, r.node, r.body...)
			switch {
			case errno == 0 && r.op == opFallocate:
				t.Errorf("%s: % x", r.name, data)
			case errno == 0 && r.op == opWrite && binary.LittleEndian.Uint32(data) > 4:
				t.Errorf("%s of 4 bytes: % x", r.name, data)
			}
			lookup(t, other, "file")
		}
		// More to be forgotten than there are in the request: no answer, and nothing is forgotten.
		f.q.publish(f.q.place(0, fuseRequest(42, 9, 0, u32s(huge, 0), u64s(f.dir, 1<<40)), 0))
		if _, _, ok := f.q.used(deadline); !ok {
			t.Fatal("BATCH_FORGET is not taken")
		}
	}
	runtime.ReadMemStats(&m)
	each := (m.TotalAlloc - total) / n
	t.Logf("%d bytes of memory for each of %d requests", each, n)
	if each > 1<<20 {
		t.Error("that is too much")
	}
	value := make([]byte, 1<<16)
	if n, err := unix.Getxattr(filepath.Join(f.top, "share/file"), "user.x", value); err == nil && string(value[:n]) != "evil" {
		t.Errorf("an attribute of 4 bytes is %q", value[:n])
	}
	if b, err := os.ReadFile(filepath.Join(f.top, "share/file")); err != nil || len(b) != 100 {
		t.Errorf("the file has %d bytes, %v", len(b), err)
	}
	if errno, data := f.call(3, 1, make([]byte, 16)); errno != 0 {
		t.Errorf("GETATTR after all: %v % x", errno, data)
	}
	f.quiet()
}
