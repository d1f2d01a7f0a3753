package vmtest

import (
	"os"
	"sync"
	"testing"
	"time"
)

// accelEnv names QEMU's accelerator, kvm or tcg, so that nothing has to be tried.
const accelEnv = "HERALDFS_ACCEL"

// probeTimeout is how long a guest under KVM may take to boot; it takes less than a second where that works at all.
const probeTimeout = 4 * time.Second

// tried is what was found out in this process.
type tried struct {
	once sync.Once
	name string
}

var accel tried

// choose returns the accelerator to use. Where /dev/kvm can be opened a guest is booted under it, once: there are machines
// on which it opens and no kernel gets anywhere.
func (a *tried) choose(t testing.TB, assets Assets) string {
	a.once.Do(func() {
		if a.name = os.Getenv(accelEnv); a.name != "" {
			return
		}
		a.name = "tcg"
		f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err != nil {
			return
		}
		f.Close()
		begin := time.Now()
		vm, err := boot(t, Options{}, assets, "kvm", probeTimeout)
		if err != nil {
			t.Logf("KVM is no use: no guest in %v", time.Since(begin).Round(10*time.Millisecond))
			return
		}
		vm.kill()
		a.name = "kvm"
	})
	return a.name
}

// accelArgs are QEMU's.
func accelArgs(name string) []string {
	cpu := "max"
	if name == "kvm" {
		cpu = "host"
	}
	return []string{"-accel", name, "-cpu", cpu}
}
