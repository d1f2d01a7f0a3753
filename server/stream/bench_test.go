package stream

import (
	"strconv"
	"testing"

	"github.com/heraldfs/heraldfs/protocol/client"
)

// BenchmarkDelivery is from Publish to the Handler over a unix socket, per event.
func BenchmarkDelivery(b *testing.B) {
	bed := newBed(b, Options{JournalEvents: 1 << 22, JournalBytes: 1 << 30}, ServerOptions{})
	c := newCollector()
	start(b, client.Options{Dial: bed.dial, Subscribe: never(), Since: fromStart()}, c)
	c.wait(b, "a connection", func() bool { return c.connected > 0 })
	batch := make([]Record, 100)
	for i := range batch {
		batch[i] = modify("src/module/internal", "file"+strconv.Itoa(i)+".go")
	}
	b.ReportAllocs()
	b.ResetTimer()
	n := 0
	for ; n < b.N; n += len(batch) {
		bed.st.Publish(batch)
	}
	c.waitLast(b, uint64(n))
	b.StopTimer()
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
	c.exact(b, 1, uint64(n))
}
