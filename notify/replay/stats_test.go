package replay

import (
	"testing"
	"time"
)

func TestDelays(t *testing.T) {
	var d Delays
	for _, v := range []time.Duration{0, 50 * time.Microsecond, 51 * time.Microsecond, time.Second, time.Minute} {
		d.observe(v)
	}
	bounds, counts, count, sum := d.Snapshot()
	if count != 5 || sum != time.Minute+time.Second+101*time.Microsecond {
		t.Errorf("count %d, sum %s", count, sum)
	}
	for i, bound := range bounds {
		want := uint64(3)
		switch {
		case bound == 50*time.Microsecond:
			want = 2
		case bound >= time.Second:
			want = 4
		}
		if counts[i] != want {
			t.Errorf("%d within %s, want %d", counts[i], bound, want)
		}
	}
}

func TestStuck(t *testing.T) {
	var s Stats
	now := time.Now()
	if d := s.Stuck(now); d != 0 {
		t.Errorf("with nothing to do: %s", d)
	}
	s.stepped(time.Time{})
	if d := s.Stuck(now.Add(time.Minute)); d < 59*time.Second || d > time.Minute {
		t.Errorf("a minute after a step: %s", d)
	}
	s.step.Store(0)
	if d := s.Stuck(now.Add(time.Hour)); d != 0 {
		t.Errorf("after the batch: %s", d)
	}
	if _, _, count, _ := s.Delay.Snapshot(); count != 0 {
		t.Errorf("%d delays of no event", count)
	}
}
