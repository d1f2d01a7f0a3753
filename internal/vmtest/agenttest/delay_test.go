package agenttest

import (
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// delays is how many samples of each kind BenchmarkDelay takes at least.
const delays = 200

// BenchmarkDelay measures, in one guest, how long it takes from a system call on the host to its event in the guest, as the
// host hears of it from a watcher there, and how long the same way back takes without heraldfs: a request to that
// watcher's process and its answer. The difference of the two is what an event costs, and half a way.
func BenchmarkDelay(b *testing.B) {
	bed := newBed(b)
	bed.do("mkdir delay; echo 1 > delay/f")
	bed.sync()
	bed.vm.Run("cat /mnt/delay/f")
	w := bed.vm.Watch(everything&^(unix.IN_OPEN|unix.IN_CLOSE), "/mnt/delay")
	defer w.Close()
	file, err := os.OpenFile(bed.path("delay/f"), os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	made := bed.path("delay/made")
	samples := map[string][]time.Duration{}
	take := func(what, name string, do func() error) {
		begin := time.Now()
		if err := do(); err != nil {
			b.Fatal(err)
		}
		if name != "" {
			w.Until(name)
		}
		samples[what] = append(samples[what], time.Since(begin))
	}
	for range max(b.N, delays) {
		take("way", "", func() error { bed.vm.Look("/mnt/none"); return nil })
		take("modify", "f", func() error { _, err := file.WriteAt([]byte("x"), 0); return err })
		take("create", "made", func() error { return os.Mkdir(made, 0o755) })
		take("delete", "made", func() error { return os.Remove(made) })
	}
	for what, all := range samples {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds()), what+"-p50-us")
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), what+"-p99-us")
	}
}
