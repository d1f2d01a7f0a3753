package fusedev

import (
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/heraldfs/heraldfs/internal/testenv"
	"golang.org/x/sys/unix"
)

// BenchmarkGetAttr compares the round trip of a request with that of go-fuse's own
// server.
func BenchmarkGetAttr(b *testing.B) {
	b.Run("fusedev", func(b *testing.B) {
		conn := serve(b, newMemFS(), Options{})
		benchGetAttr(b, conn.Mountpoint())
	})
	b.Run("go-fuse", func(b *testing.B) {
		testenv.Need(b, testenv.Root, testenv.FUSE)
		point := b.TempDir()
		server, err := fuse.NewServer(newMemFS(), point, &fuse.MountOptions{DirectMountStrict: true, Name: "heraldfs"})
		if err != nil {
			b.Fatal(err)
		}
		go server.Serve()
		defer server.Unmount()
		if err := server.WaitMount(); err != nil {
			b.Fatal(err)
		}
		benchGetAttr(b, point)
	})
}

func benchGetAttr(b *testing.B, point string) {
	path := filepath.Join(point, "dir")
	var st unix.Stat_t
	b.ReportAllocs()
	for b.Loop() {
		if err := unix.Stat(path, &st); err != nil {
			b.Fatal(err)
		}
	}
}
