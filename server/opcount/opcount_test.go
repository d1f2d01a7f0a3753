package opcount

import (
	"maps"
	"math"
	"testing"
)

func TestCounts(t *testing.T) {
	var c Counts
	for _, op := range []uint32{1, 1, 53, 7, 54, math.MaxUint32, 0} {
		c.Add(op)
	}
	want := map[string]uint64{"LOOKUP": 2, "COPY_FILE_RANGE_64": 1, "other": 4}
	if got := c.Snapshot(); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
