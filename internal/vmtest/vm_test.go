package vmtest

import (
	"strings"
	"testing"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { testenv.LeakMain(m) }

// TestBoot tries the harness itself: commands, their exit status, watches, a reset.
func TestBoot(t *testing.T) {
	vm := Start(t, Options{})
	if got := vm.Run("uname -s; cat /proc/filesystems | grep -w virtiofs"); !strings.HasPrefix(got, "Linux\n") {
		t.Errorf("uname: %q", got)
	}
	if out, exit, err := vm.Command(commandTimeout, "sh", "-c", "echo out; echo err >&2; exit 3"); err != nil || exit != 3 || out != "out\nerr\n" {
		t.Errorf("%q, exit %d, %v", out, exit, err)
	}
	if _, _, err := vm.Command(commandTimeout/30, "sleep", "100"); err == nil {
		t.Error("a command outlived its time")
	}
	w := vm.Watch(unix.IN_CREATE|unix.IN_MOVE, "/tmp")
	vm.Run("touch /tmp/a; mv /tmp/a /tmp/b; touch /tmp/end")
	got := w.Until("end")
	if len(got) != 4 || got[0].Mask != unix.IN_CREATE || got[1].Cookie == 0 || got[1].Cookie != got[2].Cookie {
		t.Errorf("events %+v", got)
	}
	w.Close()
	vm.Run("echo x > /tmp/before")
	vm.Reset()
	if got := vm.Run("ls /tmp"); got != "" {
		t.Errorf("after a reset: %q", got)
	}
}
