package passthrough

import (
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// TestPosix runs go-fuse's suite for each way to hold nodes, without caching and with all of it.
func TestPosix(t *testing.T) {
	cached := Options{EntryTimeout: time.Hour, AttrTimeout: time.Hour, NegativeTimeout: time.Hour, NoOpendir: true, KeepCache: true}
	for _, fstype := range []string{"ext4", "tmpfs"} {
		for _, mode := range []HandleMode{HandlePrefer, HandleNever, HandleMandatory} {
			for name, opts := range map[string]Options{"plain": {}, "cached": cached} {
				t.Run(fstype+"/"+mode.String()+"/"+name, func(t *testing.T) {
					opts.FileHandles = mode
					for name, test := range posixtest.All {
						if name == "FcntlFlockLocksFile" {
							continue // wants a process to conflict with itself; see TestPosixLockOfOneProcess
						}
						t.Run(name, func(t *testing.T) {
							src := t.TempDir()
							if fstype == "tmpfs" {
								src = tmpfs(t)
							}
							mnt, _ := mountPassthrough(t, src, opts)
							test(t, mnt)
						})
					}
				})
			}
		}
	}
}
