//go:build linux

package watcher_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher"
)

// BenchmarkDelay reports how long after the system call has returned an idle watcher emits its event.
// The pause between calls is what makes it idle.
func BenchmarkDelay(b *testing.B) {
	needRoot(b)
	for _, be := range backends {
		for _, idle := range []time.Duration{0, time.Millisecond} {
			b.Run(fmt.Sprintf("%s/idle=%v", be.name, idle), func(b *testing.B) {
				o := be.opts
				o.Root = b.TempDir()
				delays := delays(b, o, idle)
				slices.Sort(delays)
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(float64(delays[len(delays)/2].Nanoseconds())/1e3, "p50-us")
				b.ReportMetric(float64(delays[len(delays)*99/100].Nanoseconds())/1e3, "p99-us")
			})
		}
	}
}

func delays(b *testing.B, o watcher.Options, idle time.Duration) []time.Duration {
	w, err := watcher.Open(o)
	if err != nil {
		b.Fatal(err)
	}
	root, err := unix.Open(o.Root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(root)
	if w.Marker != nil {
		if err := w.Marker.Mark(notify.Object{FS: 1, Handle: "root"}, root); err != nil {
			b.Fatal(err)
		}
	}
	heard := make(chan time.Time, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- w.Run(context.Background(), func(evs []notify.Event) {
			now := time.Now()
			for _, ev := range evs {
				if ev.Name == "delay" {
					heard <- now
				}
			}
		})
	}()
	name := o.Root + "/delay"
	var out []time.Duration
	b.ResetTimer()
	for i := range b.N {
		time.Sleep(idle)
		if i%2 == 0 {
			err = unix.Mknod(name, unix.S_IFREG, 0)
		} else {
			err = unix.Unlink(name)
		}
		called := time.Now()
		if err != nil {
			b.Fatal(err)
		}
		out = append(out, max(0, (<-heard).Sub(called)))
	}
	b.StopTimer()
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
	return out
}
