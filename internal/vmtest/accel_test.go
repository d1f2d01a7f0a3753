package vmtest

import (
	"testing"
	"time"
)

// TestAccelerator: one that was named is taken; otherwise it is found out, in little time and once.
func TestAccelerator(t *testing.T) {
	Need(t)
	assets, err := FetchAssets()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(accelEnv, "named")
	var named tried
	if got := named.choose(t, assets); got != "named" {
		t.Errorf("took %s", got)
	}
	t.Setenv(accelEnv, "")
	var found tried
	begin := time.Now()
	got := found.choose(t, assets)
	if d := time.Since(begin); d > probeTimeout+2*time.Second || got != "kvm" && got != "tcg" {
		t.Errorf("%s after %v", got, d)
	}
	begin = time.Now()
	if again := found.choose(t, assets); again != got || time.Since(begin) > time.Second {
		t.Errorf("%s, and then %s after %v", got, again, time.Since(begin))
	}
}
