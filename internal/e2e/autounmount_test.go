package e2e

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAutoUnmount kills a daemon that was asked to leave nothing behind even then.
func TestAutoUnmount(t *testing.T) {
	needFUSE(t)
	dirs := place(t, "src", "mnt")
	src, mnt := dirs[0], dirs[1]
	write(t, mnt+"/below", "the directory below the mount")
	for _, flag := range []string{"--auto-unmount", "-oauto_unmount"} {
		d := serve(t, src, mnt, flag)
		d.killed = true
		check(t, d.cmd.Process.Kill())
		<-d.ended
		for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			var st unix.Stat_t
			err := unix.Stat(mnt+"/below", &st)
			if err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s: the mount of a killed daemon stays: %v", flag, err)
			}
		}
	}
	// Another mount that came on top is not the keeper's.
	d := serve(t, src, mnt, "--auto-unmount")
	check(t, unix.Mount("none", mnt, "tmpfs", 0, ""))
	d.killed = true
	check(t, d.cmd.Process.Kill())
	<-d.ended
	write(t, mnt+"/above", "still there")
	eventually(t, "the keeper to end", func() bool { return len(processes()) == 0 })
	if got := read(t, mnt+"/above"); got != "still there" {
		t.Errorf("read %q", got)
	}
	check(t, unix.Unmount(mnt, 0))
	must(t, "umount", mnt)
}
