package testenv

import (
	"os"
	"testing"
)

const ioURingSwitch = "/sys/module/fuse/parameters/enable_uring"

// SwitchOnIOURing has the kernel offer FUSE over io_uring until the test ends.
func SwitchOnIOURing(t testing.TB) {
	t.Helper()
	Need(t, Root, FUSE, IOURing)
	before, err := os.ReadFile(ioURingSwitch)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ioURingSwitch, []byte("Y"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(ioURingSwitch, before, 0); err != nil {
			t.Errorf("put %s back: %v", ioURingSwitch, err)
		}
	})
}
