package passthrough

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestSpecialFiles: they work as the guest kernel's own, and the host's are never opened for the guest.
func TestSpecialFiles(t *testing.T) {
	src := t.TempDir()
	mnt, fs := mountPassthrough(t, src, Options{})
	must(t, unix.Mkfifo(src+"/fifo", 0o644))
	r, err := os.OpenFile(mnt+"/fifo", os.O_RDONLY|unix.O_NONBLOCK, 0)
	must(t, err)
	defer r.Close()
	w, err := os.OpenFile(mnt+"/fifo", os.O_WRONLY|unix.O_NONBLOCK, 0)
	must(t, err)
	defer w.Close()
	_, err = w.WriteString("through the guest")
	must(t, err)
	buf := make([]byte, 64)
	if n, err := r.Read(buf); string(buf[:n]) != "through the guest" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	if _, err := unix.Open(src+"/fifo", unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != unix.ENXIO {
		t.Errorf("the host's fifo has a reader: %v", err)
	}
	must(t, unix.Mknod(mnt+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, os.WriteFile(mnt+"/null", []byte("x"), 0))
	for _, name := range []string{"fifo", "null"} {
		out := mustLookup(t, fs, rootID, name)
		var open fuse.OpenOut
		if s := fs.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: out.NodeId}}, &open); s.Ok() {
			t.Errorf("%s was opened on the host", name)
		}
		fs.Forget(out.NodeId, 1)
	}
}

// TestCreateOverWhatTheHostMade: the guest believes that a name is free, and the host has just
// put something there. It must not be opened unchecked, and certainly not a fifo.
func TestCreateOverWhatTheHostMade(t *testing.T) {
	src := t.TempDir()
	mnt, _ := mountPassthrough(t, src, Options{EntryTimeout: time.Hour, NegativeTimeout: time.Hour, AttrTimeout: time.Hour})
	root, err := unix.Open(mnt, unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(root)
	must(t, os.Chmod(src, 0o777))
	for name, put := range map[string]func(string) error{
		"file":    func(p string) error { return os.WriteFile(p, []byte("host"), 0o644) },
		"secret":  func(p string) error { return os.WriteFile(p, []byte("host"), 0o600) },
		"symlink": func(p string) error { return os.Symlink("target", p) },
		"fifo":    func(p string) error { return unix.Mkfifo(p, 0o644) },
	} {
		if _, err := os.Stat(mnt + "/" + name); !os.IsNotExist(err) {
			t.Fatal(err)
		}
		must(t, put(src+"/"+name))
		if name == "secret" {
			must(t, as(t, caller{1000, 1000, nil, 0}, func() error {
				fd, err := unix.Openat(root, name, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o666)
				if err != unix.EACCES {
					unix.Close(fd)
					return fmt.Errorf("somebody else's file was opened: %v", err)
				}
				return nil
			}))
			continue
		}
		fd, err := unix.Openat(root, name, unix.O_CREAT|unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o666)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		buf := make([]byte, 16)
		n, _ := unix.Read(fd, buf)
		if name == "file" && string(buf[:n]) != "host" {
			t.Errorf("%s: %q", name, buf[:max(n, 0)])
		}
		unix.Close(fd)
	}
}

// TestEscapes tries to get out of SOURCE.
func TestEscapes(t *testing.T) {
	base := t.TempDir()
	src := sub(t, base)
	must(t, os.WriteFile(base+"/secret", []byte("secret"), 0o644))
	must(t, os.MkdirAll(src+"/d/dd", 0o755))
	must(t, os.Symlink("../secret", src+"/link"))
	must(t, os.Symlink(base, src+"/dirlink"))
	mnt, fs := mountPassthrough(t, src, Options{})
	for _, name := range []string{"", ".", "..", "../secret", "d/dd", "/", "/etc/passwd"} {
		if out, status := lookup(fs, rootID, name); status.Ok() {
			t.Errorf("lookup %q gave nodeid %d", name, out.NodeId)
		}
		var out fuse.EntryOut
		if s := fs.Mkdir(nil, &fuse.MkdirIn{InHeader: fuse.InHeader{NodeId: rootID}, Mode: 0o755}, name+"x/../..", &out); s.Ok() {
			t.Errorf("mkdir %q", name)
		}
		if s := fs.Unlink(nil, &fuse.InHeader{NodeId: rootID}, name); s.Ok() {
			t.Errorf("unlink %q", name)
		}
	}
	// Symbolic links are objects: nothing is looked up in them, and they are not opened.
	for _, name := range []string{"link", "dirlink"} {
		out := mustLookup(t, fs, rootID, name)
		if _, status := lookup(fs, out.NodeId, "secret"); status.Ok() {
			t.Errorf("lookup through %s", name)
		}
		var open fuse.OpenOut
		if s := fs.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: out.NodeId}}, &open); s.Ok() {
			t.Errorf("%s was opened", name)
		}
		in := &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: fuse.InHeader{NodeId: out.NodeId}, Valid: fuse.FATTR_SIZE}}
		if s := fs.SetAttr(nil, in, &fuse.AttrOut{}); s.Ok() {
			t.Errorf("%s was truncated", name)
		}
		fs.Forget(out.NodeId, 1)
	}
	// A directory that leaves SOURCE while a guest process is in it has no ".." to follow there.
	fd, err := unix.Open(mnt+"/d/dd", unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, os.Rename(src+"/d/dd", base+"/dd"))
	if f, err := unix.Openat(fd, "../secret", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		unix.Close(f)
		t.Error("out of SOURCE by .. of a moved directory")
	}
	if f, err := unix.Openat(fd, "../../../secret", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		unix.Close(f)
		t.Error("out of SOURCE by ../../..")
	}
	if data, _ := os.ReadFile(base + "/secret"); string(data) != "secret" {
		t.Errorf("the secret is now %q", data)
	}
}

// TestSymlinkRace swaps a file and a symbolic link on the host while the guest opens and truncates.
func TestSymlinkRace(t *testing.T) {
	base := t.TempDir()
	src := sub(t, base)
	must(t, os.WriteFile(base+"/secret", []byte("secret"), 0o644))
	_, fs := mountPassthrough(t, src, Options{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			os.WriteFile(src+"/t", nil, 0o644)
			os.Rename(src+"/t", src+"/x")
			os.Symlink("../secret", src+"/t")
			os.Rename(src+"/t", src+"/x")
		}
	})
	opened := 0
	for i := 0; i < 20000 && (i < 2000 || opened < 100); i++ {
		out, status := lookup(fs, rootID, "x")
		if !status.Ok() {
			continue
		}
		in := &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: out.NodeId}, Flags: unix.O_RDWR | unix.O_TRUNC}
		var open fuse.OpenOut
		if fs.Open(nil, in, &open).Ok() {
			opened++
			fs.Write(nil, &fuse.WriteIn{Fh: open.Fh}, []byte("owned"))
			fs.Release(nil, &fuse.ReleaseIn{Fh: open.Fh})
		}
		fs.Forget(out.NodeId, 1)
	}
	close(stop)
	wg.Wait()
	if opened == 0 {
		t.Error("the race was never run: no file was opened")
	}
	if data, _ := os.ReadFile(base + "/secret"); string(data) != "secret" {
		t.Errorf("the secret is now %q", data)
	}
}
