package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// guestKind is a way to be a guest: cmd runs in it and has the mount at dir.
type guestKind struct {
	name string
	wrap func(t *testing.T, mnt string, args ...string) (cmd *exec.Cmd, dir string)
}

var guestKinds = []guestKind{
	{"mount namespace", inNamespace},
	{"chroot", inChroot},
}

// inNamespace gives the guest a mount namespace of its own.
func inNamespace(t *testing.T, mnt string, args ...string) (*exec.Cmd, string) {
	t.Helper()
	return exec.Command(testenv.NeedTool(t, "unshare"), append([]string{"-m", "--propagation=private", "--"}, args...)...), mnt
}

// inChroot gives the guest a root directory of its own with the mount at /guest. Its mounts are
// in a namespace that ends with it.
func inChroot(t *testing.T, mnt string, args ...string) (*exec.Cmd, string) {
	t.Helper()
	testenv.NeedTool(t, "chroot", "unshare")
	root := filepath.Join(filepath.Dir(mnt), "root")
	check(t, os.MkdirAll(root, 0o755))
	// A tmpfs hides the host's tree; only what the client needs is bound into it.
	sh := `set -e
root=$1; mnt=$2; shift 2
mount -t tmpfs none "$root"
for dir in /usr /bin /lib /lib64 /sbin /etc /dev /proc /root; do
	[ -e "$dir" ] || continue
	mkdir "$root$dir"
	mount --rbind "$dir" "$root$dir"
done
for dir in "$@"; do
	case $dir in /*/*) [ -d "${dir%/*}" ] && [ ! -e "$root${dir%/*}" ] && mkdir -p "$root${dir%/*}" && mount --rbind "${dir%/*}" "$root${dir%/*}" || : ;; esac
done
mkdir "$root/guest"
mount --bind "$mnt" "$root/guest"
exec chroot "$root" "$@"`
	return exec.Command("unshare", append([]string{"-m", "--propagation=private", "--", "sh", "-c", sh, "sh", root, mnt}, args...)...), "/guest"
}

// inotifywait -m -r prints the same in the guest as natively, line by line.
func TestInotifywait(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	tool := testenv.NeedTool(t, "inotifywait")
	for _, kind := range guestKinds {
		for _, backend := range backends {
			t.Run(kind.name+"/"+backend, func(t *testing.T) {
				dirs := place(t, "src", "mnt", "native/plain")
				src, mnt, plain := dirs[0], dirs[1], dirs[2]
				d := serve(t, src, mnt, "--watcher="+backend)
				_, dir := kind.wrap(t, mnt)
				cmd, _ := kind.wrap(t, mnt, append([]string{tool}, inotifyArgs(dir)...)...)
				guest := start(t, cmd, "Watches established.")
				native := start(t, exec.Command(tool, inotifyArgs(plain)...), "Watches established.")
				tell(t, false, plain, native, src, guest, d.sync)
				equal(t, native.normal(plain), guest.normal(dir))
			})
		}
	}
}

// testdata returns the path of a client script.
func testdata(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", name))
	check(t, err)
	return path
}

// Python watchdog, in a mount namespace.
func TestWatchdog(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	const python = "/usr/bin/python3" // Debian's, which has Debian's packages
	if out, err := exec.Command(python, "-c", "import watchdog").CombinedOutput(); err != nil {
		testenv.Lack(t, fmt.Sprintf("needs python3-watchdog, which internal/e2e/testdata/prepare.sh installs: %s", out))
	}
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			dirs := place(t, "src", "mnt", "native/plain")
			src, mnt, plain := dirs[0], dirs[1], dirs[2]
			d := serve(t, src, mnt, "--watcher="+backend)
			cmd, _ := inNamespace(t, mnt, python, testdata(t, "heard.py"), mnt)
			guest := start(t, cmd, "ready")
			native := start(t, exec.Command(python, testdata(t, "heard.py"), plain), "ready")
			tell(t, true, plain, native, src, guest, d.sync)
			equal(t, perPath(native.normal(plain)), perPath(guest.normal(mnt)))
		})
	}
}

// chokidar, as bundlers use it, in a mount namespace.
func TestChokidar(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	node := testenv.NeedTool(t, "node")
	cache, err := os.UserCacheDir()
	check(t, err)
	modules := filepath.Join(cache, "heraldfs-test", "node_modules")
	if _, err := os.Stat(filepath.Join(modules, "chokidar")); err != nil {
		testenv.Lack(t, "needs chokidar, which internal/e2e/testdata/prepare.sh installs")
	}
	t.Setenv("NODE_PATH", modules)
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			dirs := place(t, "src", "mnt", "native/plain")
			src, mnt, plain := dirs[0], dirs[1], dirs[2]
			d := serve(t, src, mnt, "--watcher="+backend)
			write(t, src+"/kept", "before")
			write(t, plain+"/kept", "before")
			cmd, _ := inNamespace(t, mnt, node, testdata(t, "heard.cjs"), mnt)
			guest := start(t, cmd, "ready")
			native := start(t, exec.Command(node, testdata(t, "heard.cjs"), plain), "ready")
			tell(t, false, plain, native, src, guest, d.sync)
			for _, dir := range []string{src, plain} {
				write(t, dir+"/kept", "afterwards")
			}
			for _, c := range []*client{native, guest} {
				c.wait("change kept", func(line string) bool { return strings.HasPrefix(line, "change ") && strings.HasSuffix(line, "/kept") })
			}
			equal(t, settled(native.normal(plain)), settled(guest.normal(mnt)))
		})
	}
}

// perPath sorts lines by the path that they are about and keeps the order within one: a client
// with timers or threads of its own has no other, natively neither.
func perPath(lines []string) []string {
	path := func(line string) string {
		if i := strings.IndexByte(line, '/'); i >= 0 {
			return line[i:]
		}
		return ""
	}
	out := slices.Clone(lines)
	slices.SortStableFunc(out, func(a, b string) int { return strings.Compare(path(a), path(b)) })
	return slices.Compact(out)
}

// settled is perPath without what chokidar may or may not see, natively, too: changes right after
// an add, which depend on when it looked at the new file, and files in a new directory, which it
// lists before it watches.
func settled(lines []string) []string {
	var out []string
	for _, line := range perPath(lines) {
		if strings.Contains(line, " /moved/") || strings.Contains(line, " /d/") {
			continue
		}
		if path, ok := strings.CutPrefix(line, "change "); ok && len(out) > 0 && out[len(out)-1] == "add "+path {
			continue
		}
		out = append(out, line)
	}
	return out
}
