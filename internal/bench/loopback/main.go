// Command loopback mounts a directory with go-fuse's loopback file system and
// its defaults, as a program does that was written from go-fuse's example. The
// bench compares heraldfs with it.
//
// It prints "ready" when mounted, and unmounts on SIGTERM.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: loopback SOURCE MOUNTPOINT")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "loopback:", err)
		os.Exit(1)
	}
}

func run(source, point string) error {
	root, err := fs.NewLoopbackRoot(source)
	if err != nil {
		return fmt.Errorf("source %s: %w", source, err)
	}
	// A second for names and attributes is what go-fuse's documentation and example use.
	timeout := time.Second
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	server, err := fs.Mount(point, root, &fs.Options{
		EntryTimeout: &timeout,
		AttrTimeout:  &timeout,
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: source, Name: "loopback", Options: []string{"default_permissions"}},
	})
	if err != nil {
		return fmt.Errorf("mount %s: %w", point, err)
	}
	fmt.Println("ready")
	<-stop
	if err := server.Unmount(); err != nil {
		return fmt.Errorf("unmount %s: %w", point, err)
	}
	server.Wait()
	return nil
}
