package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// nobody is the user of the tests without privileges.
const nobody = 65534

// as makes cmd run under a user without privileges.
func as(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	cmd.Dir = "/"
	return cmd
}

// Each wrong use says what is wrong and what to do, exits 1 and leaves nothing behind,
// in the foreground as in the background.
func TestBadInput(t *testing.T) {
	needFUSE(t)
	dirs := place(t, "src", "mnt", "used")
	src, mnt, used := dirs[0], dirs[1], dirs[2]
	file, none := src+"/file", filepath.Dir(src)+"/none"
	write(t, file, "x")
	serve(t, src, used)
	running := len(processes()) // its keeper among them

	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"missing source", []string{none, mnt}, []string{none, "no such file", "exists"}},
		{"file as source", []string{file, mnt}, []string{file, "not a directory"}},
		{"missing mount point", []string{src, none}, []string{none, "mkdir"}},
		{"file as mount point", []string{src, file}, []string{file, "not a directory"}},
		{"no arguments", nil, []string{"SOURCE and MOUNTPOINT", "--help"}},
		{"one argument", []string{src}, []string{"got 1 argument", "--help"}},
		{"unknown option", []string{"-o", "readonly", src, mnt}, []string{`"readonly"`, "mount --help"}},
		{"unknown option among known", []string{"-o", "ro,nosuid,notfy=on", src, mnt}, []string{`"notfy=on"`}},
		{"option that is a flag", []string{"-o", "daemon", src, mnt}, []string{`"daemon"`}},
		{"bad value of an option", []string{"-o", "notify=perhaps", src, mnt}, []string{"perhaps", "on or off"}},
		{"bad mask", []string{"--mask=create,explode", src, mnt}, []string{`"explode"`, "create, delete"}},
		{"empty mask", []string{"--mask=", src, mnt}, []string{"--mask"}},
		{"bad notify", []string{"--notify=maybe", src, mnt}, []string{"on or off"}},
		{"bad watcher", []string{"--watcher=oracle", src, mnt}, []string{"oracle", "auto, fanotify or inotify"}},
		{"bad io_uring", []string{"--io-uring=yes", src, mnt}, []string{"auto, on or off"}},
		{"bad handles", []string{"--inode-file-handles=often", src, mnt}, []string{"never, prefer or mandatory"}},
		{"bad cache timeout", []string{"--cache-timeout=-1s", src, mnt}, []string{"--cache-timeout"}},
		{"bad log format", []string{"--log-format=xml", src, mnt}, []string{"text or json"}},
		{"bad log level", []string{"--log-level=loud", src, mnt}, []string{"debug, info, warn or error"}},
		{"log file in a missing directory", []string{"--log-file=" + none + "/log", src, mnt}, []string{"--log-file", none}},
		{"unknown flag", []string{"--frobnicate", src, mnt}, []string{"frobnicate"}},
		{"mounted already", []string{src, used}, []string{"already", used, "umount"}},
	} {
		for _, daemon := range []bool{false, true} {
			name, args := c.name, append([]string{"mount"}, c.args...)
			if daemon {
				name, args = name+" with --daemon", append([]string{"mount", "--daemon"}, c.args...)
			}
			t.Run(name, func(t *testing.T) {
				wrong(t, exec.Command(bin, args...), c.want...)
				if isMounted(t, mnt) {
					t.Error("something is mounted")
				}
				if len(processes()) != running {
					eventually(t, "the failed daemon has ended", func() bool { return len(processes()) == running })
				}
			})
		}
	}
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"umount of nothing", []string{"umount"}, []string{"MOUNTPOINT"}},
		{"umount of a directory", []string{"umount", src}, []string{src, "nothing is mounted", "findmnt"}},
		{"umount of what is not there", []string{"umount", none}, []string{none, "no such file"}},
		{"sync of a directory", []string{"sync", src}, []string{src, "nothing is mounted"}},
		{"sync of what is not there", []string{"sync", none}, []string{none, "no such file"}},
	} {
		t.Run(c.name, func(t *testing.T) { wrong(t, exec.Command(bin, c.args...), c.want...) })
	}
}

// wrong runs a command that has to fail with a text of one line that holds the wanted words.
func wrong(t *testing.T, cmd *exec.Cmd, want ...string) {
	t.Helper()
	out, code := finish(t, cmd)
	if code != 1 {
		t.Errorf("exit status %d", code)
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("%q is not in: %s", w, out)
		}
	}
	said := 0
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "time=") {
			said++
		}
	}
	if said != 1 || strings.Contains(out, "<nil>") || strings.Contains(out, "goroutine") {
		t.Errorf("not one clear line: %s", out)
	}
}

func TestNoPermission(t *testing.T) {
	needFUSE(t)
	dirs := place(t, "src", "mnt", "closed")
	src, mnt, closed := dirs[0], dirs[1], dirs[2]
	check(t, os.Mkdir(closed+"/in", 0o755))
	check(t, os.Chmod(closed, 0o700))
	check(t, os.Chown(src, nobody, nobody))

	wrong(t, as(exec.Command(bin, "mount", closed+"/in", mnt)), closed, "permission denied")
	device(t, 0o600)
	wrong(t, as(exec.Command(bin, "mount", src, mnt)), "/dev/fuse")
	device(t, 0o666)
	wrong(t, as(exec.Command(bin, "mount", src, mnt)), mnt, "fusermount3") // not the owner of the mount point
	wrong(t, as(exec.Command(bin, "mount", "--watcher=fanotify", src, mnt)), "fanotify", "doctor")
	check(t, os.Chown(mnt, nobody, nobody))
	wrong(t, as(exec.Command(bin, "mount", "--allow-other", src, mnt)), "allow_other", "/etc/fuse.conf")
	if isMounted(t, mnt) {
		t.Error("something is mounted")
	}
	d := serve(t, src, mnt)
	wrong(t, as(exec.Command(bin, "umount", mnt)), mnt)
	d.stop(unix.SIGTERM)
}

// device sets the mode of /dev/fuse until the test ends.
func device(t testing.TB, mode os.FileMode) {
	t.Helper()
	st, err := os.Stat("/dev/fuse")
	check(t, err)
	check(t, os.Chmod("/dev/fuse", mode))
	t.Cleanup(func() { check(t, os.Chmod("/dev/fuse", st.Mode().Perm())) })
}

// A mount point whose parents are symlinks is found by any of its names.
func TestSymlinkedPaths(t *testing.T) {
	dirs := place(t, "real/src", "real/mnt")
	top := filepath.Dir(filepath.Dir(dirs[0]))
	check(t, os.Symlink("real", top+"/link"))
	check(t, os.Symlink("link/mnt", top+"/point"))
	d := serve(t, top+"/link/src", top+"/point")
	d.mnt = dirs[1]
	write(t, dirs[0]+"/f", "x")
	must(t, "sync", top+"/point")
	if got := read(t, dirs[1]+"/f"); got != "x" {
		t.Errorf("read %q", got)
	}
	must(t, "umount", top+"/link/mnt")
	d.ends("umount")
	if _, err := os.Lstat(top + "/point/f"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the end: %v", err)
	}
}
