package coalesce

import (
	"strings"
	"testing"

	"github.com/heraldfs/heraldfs/notify"
)

var benchBatches = []struct{ name, script string }{
	{"modify", "MODIFY 1/f =2 p9"},
	{"burst", strings.Repeat("MODIFY 1/f =2\nMODIFY 1/g =3\n", 64)},
	{"inotify", strings.Repeat("CREATE 1/f\nMODIFY 1/f\nCLOSE_WRITE 1/f\nMOVED_FROM 1/f c4\nMOVED_TO 2/g c4\nDELETE 2/g\n", 16)},
	{"merged", strings.Repeat("CREATE|MODIFY|CLOSE_WRITE|DELETE 1/f =2\nRENAME 1/f > 1/g =2\nRENAME 1/g > 1/f =2\nATTRIB =2\n", 16)},
}

func BenchmarkPush(b *testing.B) {
	for _, bb := range benchBatches {
		b.Run(bb.name, func(b *testing.B) {
			raws := parseRaws(b, bb.script)
			c := New(Config{})
			dst := make([]notify.Event, 0, 1024)
			c.Push(dst, raws, epoch)
			b.ReportAllocs()
			for b.Loop() {
				c.Push(dst, raws, epoch)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(raws)), "ns/record")
		})
	}
}

// TestNoAllocation holds the benchmark's promise, also for merged batches once
// the tables have grown.
func TestNoAllocation(t *testing.T) {
	for _, bb := range benchBatches {
		raws := parseRaws(t, bb.script)
		c := New(Config{})
		dst := make([]notify.Event, 0, 1024)
		if n := testing.AllocsPerRun(100, func() { c.Push(dst, raws, epoch) }); n != 0 {
			t.Errorf("%s: %v allocations a batch", bb.name, n)
		}
	}
}
