package parity

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// TestShareOneByOne: over a share, exact, and contents are fresh when the event has come.
func TestShareOneByOne(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE, testenv.Fanotify)
	for _, share := range shares {
		for _, backend := range backends {
			for seed := range scale(1, 20) {
				t.Run(fmt.Sprintf("%s/%s/%d", share, backend, seed), func(t *testing.T) {
					b := newShareBed(t, share, testenv.Tmpfs(t), backend, uint64(300+seed), 0, shareKinds(share, backend))
					ops, err := b.gen.Run(context.Background(), scale(300, 2000), b.checked)
					if err != nil {
						t.Error(err)
					}
					b.judge(ops)
				})
			}
		}
	}
}

// TestSharePaced is TestPaced over a share.
func TestSharePaced(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE, testenv.Fanotify)
	for _, share := range shares {
		for _, backend := range backends {
			for seed := range scale(1, 20) {
				t.Run(fmt.Sprintf("%s/%s/%d", share, backend, seed), func(t *testing.T) {
					b := newShareBed(t, share, testenv.Tmpfs(t), backend, uint64(400+seed), 2*time.Millisecond, shareKinds(share, backend))
					ops, err := b.gen.Run(context.Background(), scale(300, 2000), nil)
					if err != nil {
						t.Fatal(err)
					}
					b.sync()
					b.fence()
					if backend == "inotify" || share != "bind" {
						// What a file's own watch hears depends on knowing early which file it was.
						b.directoriesOnly()
					}
					b.judgeMerged(ops)
				})
			}
		}
	}
}
