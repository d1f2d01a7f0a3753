package parity

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/opgen"
)

// shares are what SOURCE can be of a mount that takes its events from a server: a second bind mount of
// the host's directory, and two that stand for a foreign share with caches of a second. The one named cached
// knows its files by handle, as the servers of NFS and virtiofs do: heraldfs itself, without events. The other
// is go-fuse's loopback file system, which knows them by path.
var shares = []string{"bind", "cached", "loopback"}

// shareKinds leaves out what a share cannot show: see TestLoopbackTree for go-fuse's loopback.
func shareKinds(share, backend string) []opgen.Kind {
	return slices.DeleteFunc(slices.Clone(kinds(backend)), func(k opgen.Kind) bool {
		return share == "loopback" && slices.Contains(beyondLoopback, k)
	})
}

// beyondLoopback are the kinds of operations that go-fuse's loopback does not survive when they are made on
// the host, behind its back.
var beyondLoopback = []opgen.Kind{opgen.Link, opgen.RenameDir, opgen.RenameDirOver, opgen.Exchange, opgen.MoveOut, opgen.MoveIn}

// loopback is the helper that mounts go-fuse's loopback.
var loopback = sync.OnceValues(func() (string, error) {
	path := filepath.Join(os.TempDir(), "loopback")
	out, err := exec.Command("go", "build", "-o", path, "github.com/heraldfs/heraldfs/internal/bench/loopback").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build loopback: %w\n%s", err, out)
	}
	return path, nil
})

// serve runs a server of the host's directory and makes the share, both until the test ends. It returns
// the server's URL and the share.
func (b *bed) serve(binary string) (url, source string) {
	b.t.Helper()
	dir := b.t.TempDir()
	source = filepath.Join(dir, "share")
	if err := os.Mkdir(source, 0o755); err != nil {
		b.t.Fatal(err)
	}
	url = "unix://" + filepath.Join(dir, "s")
	switch b.share {
	case "bind":
		if err := unix.Mount(b.host, source, "", unix.MS_BIND, ""); err != nil {
			b.t.Fatal(err)
		}
		b.t.Cleanup(func() {
			if err := unix.Unmount(source, 0); err != nil {
				b.t.Error(err)
			}
		})
	case "cached":
		cmd := exec.Command(binary, "mount", "--notify=off", "--cache-timeout=1s", "--log-level=warn", b.host, source)
		cmd.Stderr = os.Stderr
		b.mounted(cmd, source)
	case "loopback":
		helper, err := loopback()
		if err != nil {
			b.t.Fatal(err)
		}
		b.mounted(exec.Command(helper, b.host, source), source)
	}
	cmd := exec.Command(binary, "serve", "--watcher="+b.backend, "--listen", url, b.host)
	log, err := cmd.StderrPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	b.until(cmd, log, "msg=listening")
	return url, source
}

// mounted starts a helper that says "ready" when it has mounted the share. The test's end ends it.
func (b *bed) mounted(cmd *exec.Cmd, point string) {
	b.t.Helper()
	b.t.Cleanup(func() {
		// EINVAL: it has unmounted it itself, as it should.
		if err := unix.Unmount(point, unix.MNT_DETACH); err == nil {
			b.t.Errorf("%s left its mount behind", filepath.Base(cmd.Path))
		} else if !errors.Is(err, unix.EINVAL) {
			b.t.Error(err)
		}
	})
	out, w, err := os.Pipe()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { out.Close() })
	cmd.Stdout, cmd.ExtraFiles = w, []*os.File{w}
	cmd.Env = append(os.Environ(), "HERALDFS_READY_FD=3")
	defer w.Close()
	b.until(cmd, out, "ready")
}
