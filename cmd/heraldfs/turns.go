//go:build linux

package main

import (
	"os"
	"runtime"
)

// turns is how many threads of a mount wake each other in the course of one event: that of the source, the
// replayer, its servant, and the reader of the device.
const turns = 4

// takeTurns lets so many run Go code at once, on however few CPUs. Each of them is nearly always in a system
// call; with less room, one that returns from it may find none, and waits for the scheduler's next look.
func takeTurns() {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < turns {
		runtime.GOMAXPROCS(turns)
	}
}
