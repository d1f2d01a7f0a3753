package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// What a guest does itself is heard once, by its own watchers and by those on the host, as on a
// directory that nobody mounts.
func TestEcho(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			dirs := place(t, "src/sub", "mnt", "native/plain/sub")
			src, mnt, plain := filepath.Dir(dirs[0]), dirs[1], filepath.Dir(dirs[2])
			for _, dir := range []string{src, plain} {
				write(t, dir+"/file", "watched itself")
			}
			d := serve(t, src, mnt, "--watcher="+backend)
			native := listen(t, plain, notify.DefaultMask, "sub", "file")
			guest := listen(t, mnt, notify.DefaultMask, "sub", "file")
			host := listen(t, src, notify.DefaultMask, "sub", "file")
			// At the speed of the guest, and then one by one.
			for _, s := range script("aside") {
				check(t, s.do(plain))
				check(t, s.do(mnt))
			}
			for _, dir := range []string{plain, mnt} {
				check(t, errors.Join(os.Remove(dir+"/hard"), os.Remove(dir+"/old")))
			}
			for _, s := range script("aside") {
				check(t, s.do(plain))
				check(t, s.do(mnt))
				d.sync()
			}
			for _, dir := range []string{plain, mnt} {
				f, err := os.OpenFile(dir+"/file", os.O_RDWR, 0)
				check(t, err)
				_, err = f.WriteAt([]byte("WATCHED"), 0)
				check(t, errors.Join(err, f.Truncate(3), f.Close()))
				check(t, os.Chmod(dir+"/file", 0o600))
				check(t, unix.Setxattr(dir+"/file", "user.x", []byte("1"), 0))
				check(t, os.Rename(dir+"/file", dir+"/sub/file"))
				check(t, os.Remove(dir+"/sub/file"))
			}
			// The host's own words come after, and an echo would have come before.
			d.sync()
			check(t, os.Mkdir(plain+"/fence", 0o755))
			check(t, os.Mkdir(src+"/fence", 0o755))
			for _, e := range []*ear{native, guest, host} {
				e.wait(".", "CREATE,ISDIR fence")
			}
			compare(t, native, guest)
			once(t, native, host)
		})
	}
}

// once wants host to have heard each event of native exactly as often. The order is the same, too, but
// DELETE_SELF and what depends on the mount's own references: a file that it has open lives longer.
func once(t *testing.T, native, host *ear) {
	t.Helper()
	for _, text := range []string{
		"CREATE a", "MOVED_FROM a", "MOVED_TO b", "CREATE,ISDIR d", "CREATE hard", "CREATE soft", "DELETE soft",
		"CREATE old", "DELETE back", "MOVED_TO back", "MOVED_TO aside", "DELETE,ISDIR moved",
	} {
		if n, h := heardTimes(native, text), heardTimes(host, text); n != h || n == 0 {
			t.Errorf("%q: natively %d times, on SOURCE %d times", text, n, h)
		}
	}
}

// heardTimes counts an event by its words without the cookie.
func heardTimes(e *ear, text string) int {
	n := 0
	for _, line := range e.story()["."] {
		if line == text || len(line) > len(text) && line[:len(text)] == text && line[len(text)] == ' ' {
			n++
		}
	}
	return n
}

// Host and guest change the same directory in turn: everybody hears everything once.
func TestInTurn(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			dirs := place(t, "src", "mnt", "native/plain")
			src, mnt, plain := dirs[0], dirs[1], dirs[2]
			d := serve(t, src, mnt, "--watcher="+backend)
			native, guest := listen(t, plain, notify.DefaultMask), listen(t, mnt, notify.DefaultMask)
			for i, s := range script("aside") {
				at := src
				if i%2 == 0 {
					at = mnt
				}
				check(t, s.do(plain))
				check(t, s.do(at))
				d.sync()
			}
			check(t, os.Mkdir(plain+"/fence", 0o755))
			fenced(t, src, guest)
			native.wait(".", "CREATE,ISDIR fence")
			compare(t, native, guest)
		})
	}
}
