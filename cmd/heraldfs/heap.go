//go:build linux

package main

import (
	"os"
	"runtime/debug"
)

// mountGCPercent is how much garbage there may be to what is in use. Most of a mount's heap is what it knows of
// files, which stays, and a request leaves little behind: so collecting often costs little, and the default of
// 100 would double the memory.
const mountGCPercent = 25

// leanHeap sets it, unless the user has said how memory is to be used.
func leanHeap() {
	for _, name := range []string{"GOGC", "GOMEMLIMIT"} {
		if os.Getenv(name) != "" {
			return
		}
	}
	debug.SetGCPercent(mountGCPercent)
}
