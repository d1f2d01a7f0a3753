package coalesce

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/heraldfs/heraldfs/notify"
)

// fuzzRaws makes any records of few objects, directories and names, possible or not.
func fuzzRaws(data []byte) []notify.Raw {
	bits := [...]notify.Mask{
		notify.Create, notify.Delete, notify.Modify, notify.Attrib, notify.CloseWrite, notify.DeleteSelf,
		notify.Rename, notify.MovedFrom, notify.MovedTo, notify.IsDir, notify.QOverflow, notify.Open,
	}
	some := func(b byte) notify.Object {
		if b&7 == 0 {
			return notify.Object{}
		}
		return obj(int(b & 7))
	}
	var raws []notify.Raw
	for ; len(data) >= 6; data = data[6:] {
		var r notify.Raw
		for i, bit := range bits {
			if (int(data[0])|int(data[1])<<8)>>i&1 != 0 {
				r.Mask |= bit
			}
		}
		r.Dir, r.Object, r.NewDir = some(data[2]), some(data[2]>>3), some(data[3])
		r.Name = [...]string{"a", "b", "", "."}[data[3]>>3&3]
		r.NewName = [...]string{"a", "b", "c", ""}[data[3]>>5&3]
		r.Cookie, r.Pid = uint32(data[4]&3), int32(data[5]&1)
		raws = append(raws, r)
	}
	return raws
}

// FuzzPush feeds records that no kernel would send. Whatever comes in, every
// operation comes out, held records stay bounded, and all of it twice the same.
func FuzzPush(f *testing.F) {
	f.Add([]byte("\x01\x00\x09\x00\x00\x00\x40\x00\x11\x09\x01\x00\x03\x00\x09\x00\x00\x00"), uint8(2), uint8(3))
	f.Add([]byte("\x80\x00\x01\x00\x01\x00\x80\x00\x0a\x00\x02\x00\x00\x01\x02\x00\x01\x00\x00\x01\x01\x00\x02\x00"), uint8(1), uint8(9))
	f.Fuzz(func(t *testing.T, data []byte, split, limit uint8) {
		raws := fuzzRaws(data)
		n, bound := int(split)%16+1, int(limit)%16+1
		run := func() []notify.Event {
			c := New(Config{Limit: bound, MoveWait: time.Millisecond})
			var events []notify.Event
			now := epoch
			for rest := raws; len(rest) > 0; {
				k := min(n, len(rest))
				events = c.Push(events, rest[:k], now)
				rest = rest[k:]
				now = now.Add(300 * time.Microsecond)
				if len(c.held) >= bound {
					t.Fatalf("%d records held, the limit is %d", len(c.held), bound)
				}
			}
			for range 3 {
				if d := c.Deadline(); !d.IsZero() {
					events = c.Flush(events, d.Add(time.Hour))
				}
			}
			if d := c.Deadline(); !d.IsZero() || len(c.held) > 0 {
				t.Fatalf("%d records held for ever", len(c.held))
			}
			return events
		}
		events := run()
		if d := cmp.Diff(events, run()); d != "" {
			t.Fatalf("not the same twice:\n%s", d)
		}
		count := map[notify.Op]int{}
		for _, ev := range events {
			count[ev.Op]++
		}
		creates, deletes, overflows := 0, 0, 0
		for _, r := range raws {
			switch {
			case r.Mask&notify.QOverflow != 0:
				overflows++
			case r.Mask&(notify.Rename|notify.Moves) != 0:
			default:
				if r.Mask&notify.Create != 0 {
					creates++
				}
				if r.Mask&notify.Delete != 0 {
					deletes++
				}
			}
		}
		if count[notify.OpCreate] != creates || count[notify.OpDelete] != deletes || count[notify.OpOverflow] != overflows {
			t.Fatalf("created %d deleted %d overflowed %d, told %d %d %d", creates, deletes, overflows,
				count[notify.OpCreate], count[notify.OpDelete], count[notify.OpOverflow])
		}
	})
}
