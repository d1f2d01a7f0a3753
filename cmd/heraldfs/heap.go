//go:build linux

package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// mountGCPercent is how much garbage there may be to what is in use. Most of a mount's heap is what it knows of
	// files, which stays, and a request leaves little behind: so collecting often costs little, and the default of
	// 100 would double the memory.
	mountGCPercent = 25
	// mountGarbage may be there in any case, in bytes. A small mount would collect after each megabyte otherwise.
	mountGarbage = 6 << 20
)

// leanHeap says how often memory is collected, unless the user has.
func leanHeap() {
	for _, name := range []string{"GOGC", "GOMEMLIMIT"} {
		if os.Getenv(name) != "" {
			return
		}
	}
	last := gcPercent(0)
	debug.SetGCPercent(last)
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	afterGC(func() {
		metrics.Read(live)
		// Setting it stops the world for a moment.
		if p := gcPercent(live[0].Value.Uint64()); p > last+last/8 || p < last-last/8 || p == mountGCPercent && p != last {
			last = p
			debug.SetGCPercent(p)
		}
	})
}

// gcPercent is what to set with live bytes in use.
func gcPercent(live uint64) int {
	return max(mountGCPercent, int(100*mountGarbage/max(live, 4<<20)))
}

// afterGC has f called after each collection, by one goroutine.
func afterGC(f func()) {
	type token struct{ _ [16]byte }
	var arm func()
	arm = func() {
		runtime.SetFinalizer(new(token), func(*token) {
			f()
			arm()
		})
	}
	arm()
}
