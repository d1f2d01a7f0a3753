package stream

import (
	"slices"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/client"
)

// BenchmarkLatency is from Publish of one record to the Handler, with nothing else going on.
func BenchmarkLatency(b *testing.B) {
	bed := newBed(b, Options{}, ServerOptions{})
	c := newCollector()
	arrived := make(chan time.Time, 1)
	c.fail = func(*protocol.Events) error { arrived <- time.Now(); return nil }
	start(b, client.Options{Dial: bed.dial, Subscribe: never(), Since: fromStart()}, c)
	c.wait(b, "a connection", func() bool { return c.connected > 0 })
	r := []Record{modify("d", "f")}
	var all []time.Duration
	for b.Loop() {
		began := time.Now()
		bed.st.Publish(r)
		all = append(all, (<-arrived).Sub(began))
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-us")
}
