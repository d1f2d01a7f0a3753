package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// mount8 runs mount(8) where the program under test is in PATH as mount.fuse3 sets it: in a mount
// namespace of its own. It prints the line of the mount table and the file f, and unmounts.
func mount8(t *testing.T, mnt string, args ...string) (string, int) {
	t.Helper()
	testenv.NeedTool(t, "mount", "unshare")
	sh := `dir=$1; mnt=$2; shift 2
mount --bind "$dir" /usr/local/bin || exit 2
mount "$@" || exit
grep " $mnt " /proc/self/mounts; cat "$mnt/f"
umount "$mnt"`
	defer noProcess(t)
	return finish(t, exec.Command("unshare", append([]string{"-m", "--propagation=private", "sh", "-c", sh, "sh", filepath.Dir(bin), mnt}, args...)...))
}

// flags returns the options of a mount, as of /proc/mounts.
func flags(t *testing.T, mnt string) string {
	t.Helper()
	for line := range strings.Lines(read(t, "/proc/self/mounts")) {
		if f := strings.Fields(line); f[1] == mnt {
			return f[2] + "," + f[3] + ","
		}
	}
	t.Fatalf("%s is not mounted", mnt)
	return ""
}

// ended unmounts as people do and waits for the daemon.
func ended(t *testing.T, mnt string) {
	t.Helper()
	if out, err := exec.Command("umount", mnt).CombinedOutput(); err != nil {
		t.Errorf("umount: %v: %s", err, out)
		unix.Unmount(mnt, unix.MNT_DETACH)
	}
	noProcess(t)
}

func TestMount8(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	testenv.NeedTool(t, "mount.fuse3")
	dirs := place(t, "src", "mnt")
	src, mnt := dirs[0], dirs[1]
	write(t, src+"/f", "x")
	fstab := filepath.Join(filepath.Dir(src), "fstab")
	write(t, fstab, fmt.Sprintf("%s %s fuse.heraldfs ro,nosuid,noexec,nofail,x-systemd.after=x,mask=delete 0 0\n", src, mnt))
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"by type", []string{"-t", "fuse.heraldfs", src, mnt}, []string{"fuse.heraldfs", "rw"}},
		{"with options", []string{"-t", "fuse.heraldfs", src, mnt, "-o", "ro,nosuid,nodev,noexec,notify=off"}, []string{"ro", "nosuid", "nodev", "noexec"}},
		{"by fstab", []string{"-T", fstab, mnt}, []string{"ro", "nosuid", "noexec"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, code := mount8(t, mnt, c.args...)
			line, text, _ := strings.Cut(out, "\n")
			if code != 0 || text != "x" {
				t.Fatalf("exit %d: %s", code, out)
			}
			options := strings.ReplaceAll(line, " ", ",")
			for _, w := range c.want {
				if !strings.Contains(options, ","+w+",") {
					t.Errorf("%q is not in %q", w, line)
				}
			}
		})
	}
	t.Run("unknown option", func(t *testing.T) {
		out, code := mount8(t, mnt, "-t", "fuse.heraldfs", src, mnt, "-o", "wat=1")
		if code == 0 || !strings.Contains(out, `"wat=1"`) {
			t.Errorf("exit %d: %s", code, out)
		}
	})
}

// A link mount.heraldfs in /sbin is what `mount -t heraldfs` looks for.
func TestMountHelper(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	dirs := place(t, "src", "mnt")
	src, mnt := dirs[0], dirs[1]
	helper := filepath.Join(filepath.Dir(src), "mount.heraldfs")
	check(t, os.Symlink(bin, helper))
	run := func(args ...string) (string, int) { return finish(t, exec.Command(helper, args...)) }
	if out, code := run(src, mnt, "-f", "-o", "ro"); code != 0 || isMounted(t, mnt) {
		t.Fatalf("-f: exit %d, mounted %v: %s", code, isMounted(t, mnt), out)
	}
	if out, code := run(src, mnt+"/none", "-f"); code != 1 || !strings.Contains(out, "mkdir") {
		t.Errorf("-f of what fails: exit %d: %s", code, out)
	}
	if out, code := run(src, mnt, "-o", "wat"); code != 1 {
		t.Errorf("an unknown option: exit %d: %s", code, out)
	}
	if out, code := run(src, mnt, "-sn", "-o", "rw,wat,nodev"); code != 0 {
		t.Fatalf("-s: exit %d: %s", code, out)
	}
	if have := flags(t, mnt); !strings.Contains(have, "rw,") || !strings.Contains(have, "nodev,") {
		t.Errorf("mounted with %q", have)
	}
	ended(t, mnt)
}
