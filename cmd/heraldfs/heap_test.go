//go:build linux

package main

import (
	"runtime"
	"testing"
	"time"
)

func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 150, 4 << 20: 150, 12 << 20: 50, 24 << 20: 25, 1 << 30: 25} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d bytes in use: %d%%, want %d%%", live, got, want)
		}
	}
}

func TestAfterGC(t *testing.T) {
	calls := make(chan struct{}, 1)
	afterGC(func() {
		select {
		case calls <- struct{}{}:
		default: // nobody listens any more
		}
	})
	for range 3 {
		runtime.GC()
		select {
		case <-calls:
		case <-time.After(time.Minute):
			t.Fatal("not called after a collection")
		}
	}
}
