package parity

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/internal/inotest"
	"github.com/heraldfs/heraldfs/internal/opgen"
	"github.com/heraldfs/heraldfs/internal/testenv"
)

var backends = []string{"fanotify", "inotify"}

// kinds are the operations that a backend can be exact about. inotify hears of a file
// through the directories that are watched: of a hard link in a directory that the guest
// does not know, and of what is done by that name, it hears nothing.
func kinds(backend string) []opgen.Kind {
	all := opgen.Kinds()
	if backend != "inotify" {
		return all
	}
	return slices.DeleteFunc(all, func(k opgen.Kind) bool { return k == opgen.Link })
}

// scale is how much is tried.
func scale(short, long int) int {
	if full() {
		return long
	}
	return short
}

func full() bool { return os.Getenv("HERALDFS_PARITY") == "full" }

// checked is done after each operation: its events have come, and what it changed is visible.
func (b *bed) checked(op opgen.Op) error {
	b.fence()
	if err := b.fresh(op, op.Path); err != nil {
		return err
	}
	return b.fresh(op, op.To)
}

// judge fails the test if the guest heard something else than the native watches.
func (b *bed) judge(ops []opgen.Op) {
	b.t.Helper()
	if inotest.Lost(b.heardNative) || inotest.Lost(b.heardGuest) {
		b.t.Fatal("a recorder's own queue overflowed; nothing can be said")
	}
	if diff := inotest.Compare(b.heardNative, b.heardGuest); diff != "" {
		b.t.Errorf("native and guest differ:\n%s\nafter:\n%s", diff, last(ops))
	}
	b.equalTrees()
}

// last shows the operations, the later ones of many.
func last(ops []opgen.Op) string {
	var s strings.Builder
	for _, op := range ops[max(0, len(ops)-2000):] {
		fmt.Fprintf(&s, "%v\n", op)
	}
	return s.String()
}

// overIOURing is a backend whose mount's requests come by FUSE over io_uring.
const overIOURing = "fanotify --io-uring=on"

// TestOneByOne: exact, and contents are fresh when the event has come.
func TestOneByOne(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE, testenv.Fanotify)
	for _, backend := range append(slices.Clone(backends), "fanotify --no-open", "fanotify --passthrough-min=1", overIOURing) {
		for seed := range scale(2, 20) {
			t.Run(fmt.Sprintf("%s/%d", backend, seed), func(t *testing.T) {
				b := newBed(t, testenv.Tmpfs(t), backend, uint64(seed), 0, kinds(backend))
				ops, err := b.gen.Run(context.Background(), scale(500, 2000), b.checked)
				if err != nil {
					t.Error(err)
				}
				if strings.HasSuffix(backend, "--no-open") {
					// A descriptor of the daemon's can delay the native DELETE_SELF.
					b.directoriesOnly()
				}
				b.judge(ops)
			})
		}
	}
}

// TestPaced: exact at a pace of some operations in a millisecond.
func TestPaced(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE, testenv.Fanotify)
	for _, backend := range append(slices.Clone(backends), overIOURing) {
		for seed := range scale(2, 20) {
			t.Run(fmt.Sprintf("%s/%d", backend, seed), func(t *testing.T) {
				b := newBed(t, testenv.Tmpfs(t), backend, uint64(100+seed), 2*time.Millisecond, kinds(backend))
				ops, err := b.gen.Run(context.Background(), scale(500, 2000), nil)
				if err != nil {
					t.Fatal(err)
				}
				b.fence()
				if backend == "inotify" {
					b.directoriesOnly()
					b.judge(ops)
				} else {
					// On a busy machine the reader is late, and the kernel merges.
					b.judgeMerged(ops)
				}
			})
		}
	}
}

// TestFullSpeed: what is promised when the host outruns the reader. With inotify, directories hear
// everything in order, but for what the kernel merges in any inotify queue, the daemon's and
// the recorders' (inotest.FoldMoves). With fanotify the kernel merges what was not read yet.
func TestFullSpeed(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE, testenv.Fanotify)
	for _, backend := range append(slices.Clone(backends), overIOURing) {
		for seed := range scale(3, 20) {
			t.Run(fmt.Sprintf("%s/%d", backend, seed), func(t *testing.T) {
				b := newBed(t, testenv.Tmpfs(t), backend, uint64(200+seed), 0, kinds(backend))
				ops, err := b.gen.Run(context.Background(), scale(500, 2000), nil)
				if err != nil {
					t.Fatal(err)
				}
				b.sync()
				b.fence()
				if backend == "inotify" {
					b.directoriesOnly()
					b.heardNative, b.heardGuest = inotest.FoldMoves(b.heardNative), inotest.FoldMoves(b.heardGuest)
					b.judge(ops)
				} else {
					b.judgeMerged(ops)
				}
			})
		}
	}
}

// TestFileSystems: exact on every file system that the host tree can be on.
func TestFileSystems(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE, testenv.Fanotify)
	for _, fs := range testenv.FileSystems() {
		for _, backend := range []string{"auto", "inotify"} {
			t.Run(fs.Name+"/"+backend, func(t *testing.T) {
				b := newBed(t, fs.Make(t), backend, 7, 0, kinds(backend))
				ops, err := b.gen.Run(context.Background(), scale(150, 1000), b.checked)
				if err != nil {
					t.Error(err)
				}
				if fs.Name == "overlay" {
					b.letGo()
				}
				b.judge(ops)
			})
		}
	}
}

// letGo has the daemon close files that are gone. Where there are no file handles it holds one for as long as the
// guest's kernel keeps the inode, sometimes until memory is short, and the host's own watchers hear DELETE_SELF then.
func (b *bed) letGo() {
	b.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); inotest.Compare(b.heardNative, b.heardGuest) != "" && time.Now().Before(deadline); {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
			b.t.Fatal(err)
		}
		b.fence()
	}
}
