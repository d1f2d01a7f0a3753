//go:build !race

package fusenotify

const raceEnabled = false
