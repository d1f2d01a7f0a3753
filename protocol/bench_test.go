package protocol

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

func benchBatch(n int) *Events {
	s := NewSealer(seq(32, 1))
	m := &Events{First: 1, Last: uint64(n)}
	for i := range n {
		m.Events = append(m.Events, Event{
			Seq: uint64(i + 1), Time: time.Unix(1790000000, int64(i)), Op: OpModify, Pid: 4711,
			From:   Place{Dir: fmt.Sprintf("src/module%d/internal", i/100), Name: fmt.Sprintf("file%06d.go", i)},
			Object: s.Seal(notify.Object{FS: 1 << 40, Type: 1, Handle: fmt.Sprintf("%08d", i)}),
		})
	}
	return m
}

// BenchmarkEvents encodes and decodes; ns/op is per event, both ways.
func BenchmarkEvents(b *testing.B) {
	const batch = 512
	m := benchBatch(batch)
	var wire bytes.Buffer
	enc, dec := NewEncoder(&wire), NewDecoder(&wire, 0)
	b.ReportAllocs()
	for n := 0; n < b.N; n += batch {
		if err := enc.Encode(m); err != nil {
			b.Fatal(err)
		}
		if _, err := dec.Decode(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// TestAllocations keeps the cost of an event: its name, and little else.
func TestAllocations(t *testing.T) {
	const batch = 512
	m := benchBatch(batch)
	var wire bytes.Buffer
	enc, dec := NewEncoder(&wire), NewDecoder(&wire, 0)
	n := testing.AllocsPerRun(20, func() {
		if err := enc.Encode(m); err != nil {
			t.Fatal(err)
		}
		if _, err := dec.Decode(); err != nil {
			t.Fatal(err)
		}
	})
	if per := n / batch; per > 4 {
		t.Errorf("%.1f allocations per event", per)
	}
}
