package sys

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

func openPath(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// mount mounts fstype on a new directory for the duration of the test.
func mount(t *testing.T, fstype, data string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, fstype, 0, data); err != nil {
		t.Fatalf("mount %s: %v", fstype, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

func TestHandleLayout(t *testing.T) {
	var h Handle
	if s, o, d := unsafe.Sizeof(h), unsafe.Offsetof(h.Type), unsafe.Offsetof(h.data); s != 8+maxHandle || o != 4 || d != 8 {
		t.Fatalf("size %d, handle_type at %d, f_handle at %d", s, o, d)
	}
}

// fanotifyObjects makes a file below dir while an inode mark is on it, and
// returns what the kernel's record names as directory and as child.
func fanotifyObjects(t *testing.T, dir, name string) (parent, child notify.Object) {
	t.Helper()
	fd, err := unix.FanotifyInit(unix.FAN_CLOEXEC|unix.FAN_REPORT_DFID_NAME_TARGET, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_CREATE, unix.AT_FDCWD, dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	if err != nil {
		t.Fatal(err)
	}
	buf = buf[:n]
	// struct fanotify_event_metadata is 24 bytes; then records of
	// {u8 type, u8 pad, u16 len, fsid[8], handle_bytes u32, handle_type s32, f_handle, name}.
	for rec := buf[24:binary.NativeEndian.Uint32(buf)]; len(rec) > 0; {
		size := binary.NativeEndian.Uint16(rec[2:])
		hlen := binary.NativeEndian.Uint32(rec[12:])
		obj := notify.Object{
			FS:     binary.NativeEndian.Uint64(rec[4:]),
			Type:   int32(binary.NativeEndian.Uint32(rec[16:])),
			Handle: string(rec[20 : 20+hlen]),
		}
		if rec[0] == unix.FAN_EVENT_INFO_TYPE_FID {
			child = obj
		} else {
			parent = obj
		}
		rec = rec[size:]
	}
	return parent, child
}

func TestObjectIsFanotifyKey(t *testing.T) {
	overlay := func(t *testing.T) string {
		base := mount(t, "tmpfs", "")
		for _, d := range []string{"l", "u", "w"} {
			if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		return mount(t, "overlay", "lowerdir="+base+"/l,upperdir="+base+"/u,workdir="+base+"/w")
	}
	for name, dirOf := range map[string]func(t *testing.T) string{
		"tempdir": func(t *testing.T) string { return t.TempDir() },
		"tmpfs":   func(t *testing.T) string { return mount(t, "tmpfs", "") },
		"overlay": overlay,
	} {
		t.Run(name, func(t *testing.T) {
			dir := dirOf(t)
			parent, child := fanotifyObjects(t, dir, "x")
			for path, want := range map[string]notify.Object{dir: parent, dir + "/x": child} {
				fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				got, mnt, err := ObjectOf(fd)
				statxMnt, _, err2 := MountOf(fd)
				unix.Close(fd)
				if err != nil || err2 != nil {
					t.Fatal(err, err2)
				}
				if want.IsZero() || got != want {
					t.Errorf("%s: %v, fanotify says %v", path, got, want)
				}
				if mnt != statxMnt {
					t.Errorf("mount id %d, statx says %d", mnt, statxMnt)
				}
			}
		})
	}
}

func TestObjectWithoutHandles(t *testing.T) {
	fd := openPath(t, "/proc/self/status")
	obj, _, err := ObjectOf(fd)
	if err != nil {
		t.Fatal(err)
	}
	if obj.Type == notify.TypeInode {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			t.Fatal(err)
		}
		if obj != InodeObject(obj.FS, st.Ino, st.Dev) {
			t.Errorf("stand-in %v for inode %d", obj, st.Ino)
		}
	}
	if _, err := OpenByHandle(fd, obj, unix.O_PATH); err == nil {
		t.Error("an object of procfs opened by handle")
	}
}

func TestOpenByHandle(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	obj, _, err := ObjectOf(fd)
	unix.Close(fd)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+"2"); err != nil {
		t.Fatal(err)
	}
	fd, err = OpenByHandle(root, obj, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Reopen(fd, unix.O_RDONLY)
	unix.Close(fd)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 8)
	n, err := unix.Read(f, buf)
	unix.Close(f)
	if err != nil || string(buf[:n]) != "one" {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
	if err := os.Remove(path + "2"); err != nil {
		t.Fatal(err)
	}
	if fd, err := OpenByHandle(root, obj, unix.O_PATH); !errors.Is(err, unix.ESTALE) {
		t.Fatalf("after unlink: descriptor %d, %v", fd, err)
	}
}

func TestFDClosesWithLastReference(t *testing.T) {
	raw, err := unix.Open(t.TempDir(), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	open := func() bool {
		_, err := unix.FcntlInt(uintptr(raw), unix.F_GETFD, 0)
		return err == nil
	}
	fd := NewFD(raw)
	if !fd.Acquire() {
		t.Fatal("an open descriptor cannot be acquired")
	}
	fd.Release()
	if !open() {
		t.Fatal("closed while referenced")
	}
	fd.Release()
	if open() {
		t.Fatal("open after the last reference")
	}
	if fd.Acquire() {
		t.Fatal("a closed descriptor was acquired")
	}
}

func BenchmarkHandleOf(b *testing.B) {
	fd, err := unix.Open(b.TempDir(), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	var h Handle
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := HandleOf(fd, &h); err != nil {
			b.Fatal(err)
		}
	}
}
