package passthrough

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// TestPosix runs go-fuse's suite for each way to hold nodes, without caching and with all of it.
func TestPosix(t *testing.T) {
	cached := Options{EntryTimeout: time.Hour, AttrTimeout: time.Hour, NegativeTimeout: time.Hour, NoOpendir: true, KeepCache: true}
	passed := cached
	passed.PassthroughMin = 1
	noOpen := cached
	noOpen.NoOpen = true
	for _, fstype := range []string{"ext4", "tmpfs"} {
		for _, mode := range []HandleMode{HandlePrefer, HandleNever, HandleMandatory} {
			for name, opts := range map[string]Options{"plain": {}, "cached": cached, "no open": noOpen, "passed": passed} {
				t.Run(fstype+"/"+mode.String()+"/"+name, func(t *testing.T) {
					opts.FileHandles = mode
					if opts.PassthroughMin > 0 {
						opts.Backing = &testBacking{}
					}
					for name, test := range posixtest.All {
						if name == "FcntlFlockLocksFile" {
							continue // wants a process to conflict with itself; see TestPosixLockOfOneProcess
						}
						t.Run(name, func(t *testing.T) {
							src := t.TempDir()
							if fstype == "tmpfs" {
								src = testenv.Tmpfs(t)
							}
							mnt, _ := mountPassthrough(t, src, opts)
							defer unskipped(t, fstype, name)
							test(t, mnt)
						})
					}
				})
			}
		}
	}
}

// TestPosixElsewhere runs the suite over the other file systems that SOURCE may be on. On
// overlayfs nodes hold descriptors: its handles cannot be opened.
func TestPosixElsewhere(t *testing.T) {
	for fstype, dir := range map[string]func(testing.TB) string{
		"xfs": testenv.XFS, "btrfs": testenv.Btrfs, "subvolume": testenv.BtrfsSubvolume, "overlay": testenv.Overlay,
	} {
		t.Run(fstype, func(t *testing.T) {
			base := dir(t)
			for name, test := range posixtest.All {
				if name == "FcntlFlockLocksFile" {
					continue // as above
				}
				t.Run(name, func(t *testing.T) {
					src := filepath.Join(base, name)
					must(t, os.Mkdir(src, 0o755))
					mnt, _ := mountPassthrough(t, src, Options{NegativeTimeout: time.Hour})
					defer unskipped(t, fstype, name)
					test(t, mnt)
				})
			}
		})
	}
}

// unskipped fails a test of the suite that has found something missing and skipped itself. Only an
// extended attribute of 8 KiB is more than ext4 has room for.
func unskipped(t *testing.T, fstype, name string) {
	t.Helper()
	if t.Skipped() && (fstype != "ext4" || name != "XAttrLarge") {
		t.Errorf("%s can do this", fstype)
	}
}
