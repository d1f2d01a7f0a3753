package main

import "github.com/heraldfs/heraldfs/server/fusedev"

// helperProcess is what this program is when it has started itself for a purpose.
func helperProcess(argv []string) (status int, is bool) { return fusedev.RunKeeper(argv) }
