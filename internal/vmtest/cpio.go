package vmtest

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
)

// cpioWriter writes the kernel's initramfs format: cpio "newc", a header of
// hexadecimal fields, the name and the content, each padded to four bytes.
type cpioWriter struct {
	w   io.Writer
	ino int
	err error
}

// add writes one entry; dev is the device number of a device node.
func (c *cpioWriter) add(name string, mode uint32, dev [2]int, content []byte) {
	if c.err != nil {
		return
	}
	c.ino++
	// magic ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.ino, mode, 0, 0, 1, 0, len(content), 0, 0, dev[0], dev[1], len(name)+1, 0)
	c.write([]byte(head+name+"\x00"), 4)
	c.write(content, 4)
}

func (c *cpioWriter) write(b []byte, align int) {
	if c.err == nil {
		_, c.err = c.w.Write(b)
	}
	if pad := -len(b) & (align - 1); pad > 0 && c.err == nil {
		_, c.err = c.w.Write(make([]byte, pad))
	}
}

func (c *cpioWriter) close() error {
	c.add("TRAILER!!!", 0, [2]int{}, nil)
	return c.err
}

const (
	modeDir  = 0o040755
	modeFile = 0o100755
	modeChar = 0o020600
)

// writeInitramfs makes an archive with busybox, guestd as init unless there is an inittab for busybox's, and files by their
// path without leading slash.
func writeInitramfs(path string, busybox, guestd, inittab string, files map[string]string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	c := &cpioWriter{w: f}
	made := map[string]bool{".": true}
	var mkdir func(dir string)
	mkdir = func(dir string) {
		if !made[dir] {
			made[dir] = true
			mkdir(filepath.Dir(dir))
			c.add(dir, modeDir, [2]int{}, nil)
		}
	}
	for _, dir := range []string{"bin", "dev", "proc", "sys", "tmp", "mnt", "lib"} {
		mkdir(dir)
	}
	// Until devtmpfs is mounted init's output has nowhere else to go.
	c.add("dev/console", modeChar, [2]int{5, 1}, nil)
	all := map[string]string{"bin/busybox": busybox, "init": guestd, "bin/guestd": guestd}
	if inittab != "" {
		all["init"] = busybox
		mkdir("etc")
		c.add("etc/inittab", modeFile, [2]int{}, []byte(inittab))
	}
	maps.Copy(all, files)
	for name, from := range all {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		mkdir(filepath.Dir(name))
		c.add(name, modeFile, [2]int{}, b)
	}
	if err := c.close(); err != nil {
		return err
	}
	return f.Close()
}
