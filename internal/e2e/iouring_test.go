package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// overIOURing reports whether the kernel offers FUSE over io_uring now, so that mounts take it.
func overIOURing() bool {
	b, err := os.ReadFile("/sys/module/fuse/parameters/enable_uring")
	return err == nil && bytes.HasPrefix(b, []byte("Y"))
}

// TestOverIOURing runs those tests again in which the way of the requests could make a difference.
func TestOverIOURing(t *testing.T) {
	const again = "HERALDFS_E2E_AGAIN"
	if os.Getenv(again) != "" {
		return
	}
	testenv.SwitchOnIOURing(t)
	cmd := exec.Command("/proc/self/exe", "-test.timeout=5m",
		"-test.run=^(TestInotifywait|TestCoherence|TestSameSizeRewrite|TestNegativeAndListings|TestOverflow|TestEcho|TestInTurn|"+
			"TestKill.*|TestUmount.*|TestAborted|TestAutoUnmount|TestRemount.*|TestDaemon.*|TestHundredMounts|TestSubmounts|TestUnprivileged|"+
			"TestNoOpen|TestPassing.*|TestStatusMount|TestTransport)$")
	cmd.Env = append(os.Environ(), again+"=yes", "HERALDFS_BIN="+bin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("over io_uring: %v\n%s", err, out)
	}
}

// TestTransport: the mount takes what is offered, says so, and --io-uring=on fails where it is not.
func TestTransport(t *testing.T) {
	needFUSE(t)
	dirs := place(t, "src", "mnt")
	want := "device"
	if overIOURing() {
		want = "io_uring"
	} else if out, code := heraldfs(t, "mount", "--io-uring=on", dirs[0], dirs[1]); code != 1 || !strings.Contains(out, "enable_uring") || isMounted(t, dirs[1]) {
		t.Errorf("--io-uring=on: exit %d\n%s", code, out)
	}
	for mode, want := range map[string]string{"auto": want, "off": "device"} {
		d := serve(t, dirs[0], dirs[1], "--io-uring="+mode)
		if got := statusOf(t, dirs[1]).Transport; got != want {
			t.Errorf("--io-uring=%s: requests come by %q, must be %q", mode, got, want)
		}
		d.stop(os.Interrupt)
	}
}
