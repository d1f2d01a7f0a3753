package parity

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/opgen"
	"github.com/heraldfs/heraldfs/internal/testenv"
)

// shares are what SOURCE can be of a mount that takes its events from a server: a second bind mount of
// the host's directory, and go-fuse's loopback file system with caches of a second.
var shares = []string{"bind", "loopback"}

// shareKinds leaves hard links out where the share answers for one of the names of a file, which may be another
// file's by now: go-fuse's loopback goes by paths.
func shareKinds(share, backend string) []opgen.Kind {
	return slices.DeleteFunc(slices.Clone(kinds(backend)), func(k opgen.Kind) bool { return share == "loopback" && k == opgen.Link })
}

// loopback is the helper that stands for a foreign share.
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
	if b.share == "bind" {
		if err := unix.Mount(b.host, source, "", unix.MS_BIND, ""); err != nil {
			b.t.Fatal(err)
		}
		b.t.Cleanup(func() {
			if err := unix.Unmount(source, 0); err != nil {
				b.t.Error(err)
			}
		})
	} else {
		helper, err := loopback()
		if err != nil {
			b.t.Fatal(err)
		}
		cmd := exec.Command(helper, b.host, source)
		out, err := cmd.StdoutPipe()
		if err != nil {
			b.t.Fatal(err)
		}
		b.until(cmd, out, "ready")
	}
	cmd := exec.Command(binary, "serve", "--watcher="+b.backend, "--listen", url, b.host)
	log, err := cmd.StderrPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	b.until(cmd, log, "msg=listening")
	return url, source
}

// until starts a helper and waits for it to print something. The test's end ends it.
func (b *bed) until(cmd *exec.Cmd, out io.Reader, word string) {
	b.t.Helper()
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	said, ready := make(chan string, 1), make(chan struct{})
	go func() {
		var text strings.Builder
		once := sync.OnceFunc(func() { close(ready) })
		for s := bufio.NewScanner(out); s.Scan(); {
			if strings.Contains(s.Text(), word) {
				once()
			}
			text.WriteString(s.Text() + "\n")
		}
		said <- text.String()
	}()
	b.t.Cleanup(func() {
		cmd.Process.Signal(unix.SIGTERM)
		text := <-said
		if err := cmd.Wait(); err != nil {
			b.t.Errorf("%s ended: %v\n%s", filepath.Base(cmd.Path), err, text)
		}
	})
	select {
	case <-ready:
	case <-time.After(20 * time.Second):
		b.t.Fatalf("%v does not say %q", cmd.Args, word)
	}
}

// TestShareOneByOne: over a share, exact, and contents are fresh when the event has come.
func TestShareOneByOne(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE, testenv.Fanotify)
	for _, share := range shares {
		for _, backend := range backends {
			for seed := range scale(1, 20) {
				t.Run(fmt.Sprintf("%s/%s/%d", share, backend, seed), func(t *testing.T) {
					b := newShareBed(t, share, testenv.Tmpfs(t), backend, uint64(300+seed), 0, shareKinds(share, backend))
					ops, err := b.gen.Run(context.Background(), scale(300, 2000), b.checked)
					if err != nil {
						t.Error(err)
					}
					b.judge(ops)
				})
			}
		}
	}
}

// TestSharePaced is TestPaced over a share.
func TestSharePaced(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE, testenv.Fanotify)
	for _, share := range shares {
		for _, backend := range backends {
			for seed := range scale(1, 20) {
				t.Run(fmt.Sprintf("%s/%s/%d", share, backend, seed), func(t *testing.T) {
					b := newShareBed(t, share, testenv.Tmpfs(t), backend, uint64(400+seed), 2*time.Millisecond, shareKinds(share, backend))
					ops, err := b.gen.Run(context.Background(), scale(300, 2000), nil)
					if err != nil {
						t.Fatal(err)
					}
					b.sync()
					b.fence()
					if backend == "inotify" || share == "loopback" {
						// What a file's own watch hears depends on knowing early which file it was.
						b.directoriesOnly()
					}
					b.judgeMerged(ops)
				})
			}
		}
	}
}
