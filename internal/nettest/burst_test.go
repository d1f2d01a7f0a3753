package nettest

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/client"
)

// TestBurst: 20,000 changes at full speed over a unix socket. With fanotify all of them arrive; with inotify, whose
// queue is bounded, what it drops is told as a gap in the right place.
func TestBurst(t *testing.T) {
	need(t)
	const files = 20000
	for _, c := range []struct {
		watcher string
		gaps    []protocol.Reason
	}{{"fanotify", nil}, {"inotify", []protocol.Reason{protocol.GapOverflow, protocol.GapRescan}}} {
		t.Run(c.watcher, func(t *testing.T) {
			src, sock := t.TempDir(), filepath.Join(t.TempDir(), "s")
			here := newNetns(t) // a unix socket goes through
			server := here.launch(t, "serve", "--watcher="+c.watcher, "--listen", "unix://"+sock, src)
			server.says("msg=listening")
			s := newStory()
			subscribe(t, client.Options{
				Dial: func(ctx context.Context) (net.Conn, error) {
					var d net.Dialer
					return d.DialContext(ctx, "unix", sock)
				},
				Subscribe: protocol.Subscribe{Compact: protocol.CompactNever}, Since: &client.Position{},
			}, s)
			for i := 1; i <= files; i++ {
				check(t, unix.Mknod(filepath.Join(src, fmt.Sprintf(fileName, i)), unix.S_IFREG|0o600, 0))
			}
			last := files
			if c.gaps != nil {
				// The last ones may be among what was dropped. What is made after the gap is not.
				s.wait(t, "the end of the queue", func() bool { return s.file >= files || s.gap })
				last++
				check(t, unix.Mknod(filepath.Join(src, fmt.Sprintf(fileName, last)), unix.S_IFREG|0o600, 0))
			}
			s.prove(t, last, c.gaps...)
		})
	}
}
