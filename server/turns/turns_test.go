package turns

import (
	"testing"
	"time"
)

const limit = 20 * time.Second

func TestSlots(t *testing.T) {
	s := Slots{Max: 2}
	take := func(want ...bool) {
		t.Helper()
		for i, ok := range want {
			if s.Take() != ok {
				t.Fatalf("slot %d: Take is %v, want %v", i, !ok, ok)
			}
		}
	}
	take(true, true, false)
	s.Free()
	take(true, false)
}

// TestRelieve: a handler that does not come back loses its role, also when the watchdog had fallen asleep, and one
// that does keeps it.
func TestRelieve(t *testing.T) {
	var quick, slow Turn
	relieved := make(chan int, 8)
	quit, done := make(chan struct{}), make(chan struct{})
	w := NewWatchdog(100*time.Microsecond, []*Turn{&quick, &slow}, func(i int, turn uint64) {
		if []*Turn{&quick, &slow}[i].Pass(turn) {
			relieved <- i
		}
	})
	go func() {
		defer close(done)
		w.Run(quit)
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 3 {
		end := time.Now().Add(limit)
		for !w.parked.Load() {
			if time.Now().After(end) {
				t.Fatal("the watchdog does not sleep")
			}
			<-tick.C
		}
		turn := slow.Begin()
		w.WakeUp()
		select {
		case i := <-relieved:
			if i != 1 {
				t.Fatalf("turn %d was relieved", i)
			}
		case <-time.After(limit):
			t.Fatal("nobody is relieved")
		}
		if slow.End(turn) {
			t.Error("who was relieved still has the role")
		}
		if turn := quick.Begin(); !quick.End(turn) {
			t.Error("who was quick has lost the role")
		}
	}
	close(quit)
	<-done
}
