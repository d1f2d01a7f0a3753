//go:build race

package fusenotify

const raceEnabled = true
