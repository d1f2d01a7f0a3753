// Command probe confines itself as a file server does and then behaves as one that was taken over: it tries
// to get at what is outside, and prints what came of each try.
//
//	probe MODE[-nohandles] DIR [SECRET HANDLE]
//
//	probe MODE DIR watch BACKEND
//
// The last prints the names of changes below DIR. SECRET is a file outside of DIR, HANDLE its handle: type, colon, bytes in hex.
// Without them it waits to be ended.
package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sandbox"
	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run() error {
	child, err := sandbox.Join()
	if err != nil {
		return err
	}
	name, noHandles := strings.CutSuffix(os.Args[1], "-nohandles")
	mode, err := sandbox.Parse(name)
	if err != nil {
		return err
	}
	if mode, _, err = sandbox.Resolve(mode); err != nil {
		return err
	}
	watching := len(os.Args) == 5 && os.Args[3] == "watch"
	if (mode == sandbox.Namespace || watching) && child == nil {
		status, err := sandbox.Supervise(mode, nil, func() { fmt.Println("ready") }, func() { fmt.Println("stopping") })
		if err == nil {
			os.Exit(status)
		}
		return err
	}
	o := sandbox.Options{Mode: mode, Dir: os.Args[2], NoHandles: noHandles, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	dir, err := sandbox.Enter(o)
	if err != nil {
		return err
	}
	var watch *watcher.Watcher
	if watching {
		if watch, err = watcher.Open(watcher.Options{Root: dir, Backend: os.Args[4], Dropping: true, Logger: o.Logger}); err != nil {
			return err
		}
	}
	if err := sandbox.Seal(o, dir); err != nil {
		return err
	}
	if watch != nil {
		return follow(watch, dir, child)
	}
	if err := child.Ready(); err != nil {
		return err
	}
	if len(os.Args) == 3 {
		// Until the parent ends, or somebody ends us.
		select {}
	}
	attack(dir, os.Args[3], os.Args[4])
	return serve(dir)
}

// follow prints names, of changes in dir and in what is made in it, until one is "end".
func follow(w *watcher.Watcher, dir string, child *sandbox.Child) error {
	mark := func(path string) error {
		if w.Marker == nil {
			return nil
		}
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		obj, _, err := sys.ObjectOf(fd)
		if err != nil {
			return err
		}
		return w.Marker.Mark(obj, fd)
	}
	if err := mark(dir); err != nil {
		return err
	}
	if err := child.Ready(); err != nil {
		return err
	}
	ctx, end := context.WithCancel(context.Background())
	defer end()
	return w.Run(ctx, func(events []notify.Event) {
		for _, e := range events {
			if name, ok := strings.CutPrefix(e.Name, "look-"); ok && e.Op == notify.OpCreate {
				// As if a guest had looked it up.
				say("mark", mark(filepath.Join(dir, name)))
			}
			fmt.Println("event", e.Name)
			if e.Name == "end" {
				end()
			}
		}
	})
}

func say(what string, err error) {
	if err == nil {
		fmt.Println(what, "works")
		return
	}
	fmt.Println(what, "fails")
}

func attack(dir, secret, handle string) {
	read := func(path string) error { _, err := os.ReadFile(path); return err }
	say("read", read(secret))
	say("read-up", read(filepath.Join(dir, strings.Repeat("../", 20), secret)))
	say("passwd", read("/etc/passwd"))
	say("own-program", read("/proc/self/exe"))
	say("handle", byHandle(dir, handle))
	say("create", os.WriteFile(filepath.Dir(secret)+"/new", nil, 0o600))
	say("unlink", os.Remove(secret))
	_, err := net.Dial("tcp", "127.0.0.1:1")
	say("tcp-refused-by-peer", errorIs(err, unix.ECONNREFUSED))
	say("unshare", unix.Unshare(unix.CLONE_NEWNS))
	say("chroot", unix.Chroot("/"))
	_, err = unix.FanotifyInit(unix.FAN_CLASS_CONTENT, 0)
	say("fanotify", err)
	say("setuid-back", setid())
	say("mount", unix.Mount("none", dir, "tmpfs", 0, ""))
}

func errorIs(err error, want unix.Errno) error {
	if err != nil && strings.Contains(err.Error(), want.Error()) {
		return nil
	}
	return fmt.Errorf("%w", err)
}

// setid tries a capability that was dropped, on another thread than the one that dropped it.
func setid() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Permitted: 1 << unix.CAP_SYS_ADMIN, Effective: 1 << unix.CAP_SYS_ADMIN}}
	done := make(chan error)
	go func() { done <- unix.Capset(&hdr, &data[0]) }()
	return <-done
}

// byHandle reads a file by its handle, which no root and no namespace is in the way of.
func byHandle(dir, text string) error {
	kind, bytes, _ := strings.Cut(text, ":")
	n, err := strconv.Atoi(kind)
	if err != nil {
		return err
	}
	b, err := hex.DecodeString(bytes)
	if err != nil {
		return err
	}
	mount, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	for _, flags := range []int{unix.O_RDONLY, unix.O_PATH} {
		fd, err := unix.OpenByHandleAt(mount, unix.NewFileHandle(int32(n), b), flags)
		if err != nil {
			continue
		}
		if flags == unix.O_PATH {
			if fd, err = sys.Reopen(fd, unix.O_RDONLY); err != nil {
				return err
			}
		}
		_, err = unix.Read(fd, make([]byte, 1))
		return err
	}
	return unix.EACCES
}

// serve does in dir what a file server does.
func serve(dir string) error {
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, f := range []func() error{
		func() error { return os.WriteFile(at("f"), []byte("data"), 0o600) },
		func() error { return os.Mkdir(at("d"), 0o755) },
		func() error { return os.Rename(at("f"), at("d/f")) },
		func() error { return os.Link(at("d/f"), at("l")) },
		func() error { return os.Symlink("/etc/passwd", at("s")) },
		func() error { return os.Chmod(at("l"), 0o640) },
		func() error {
			fd, err := unix.Open(at("l"), unix.O_PATH, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Truncate(sys.ProcPath(fd), 2); err != nil {
				return err
			}
			again, err := sys.Reopen(fd, unix.O_RDONLY)
			if err != nil {
				return err
			}
			return unix.Close(again)
		},
		func() error { _, err := os.ReadDir(dir); return err },
	} {
		if err := f(); err != nil {
			return fmt.Errorf("serve: %w", err)
		}
	}
	fmt.Println("serve works")
	return nil
}
