package inotify

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

func record(wd int32, mask, cookie uint32, name string) []byte {
	ne := binary.NativeEndian
	b := ne.AppendUint32(nil, uint32(wd))
	b = ne.AppendUint32(b, mask)
	b = ne.AppendUint32(b, cookie)
	n := 0
	if name != "" {
		n = (len(name) + 1 + 15) &^ 15
	}
	b = ne.AppendUint32(b, uint32(n))
	return append(append(b, name...), make([]byte, n-len(name))...)
}

func TestParse(t *testing.T) {
	if unix.SizeofInotifyEvent != eventLen {
		t.Errorf("inotify_event has %d bytes", unix.SizeofInotifyEvent)
	}
	b := append(record(3, unix.IN_CREATE|unix.IN_ISDIR, 0, "name"), record(-1, unix.IN_Q_OVERFLOW, 9, "")...)
	ev, rest, err := next(b)
	if err != nil || ev.wd != 3 || ev.mask != notify.Create|notify.IsDir || string(ev.name) != "name" {
		t.Fatalf("first: %+v, %v", ev, err)
	}
	ev, rest, err = next(rest)
	if err != nil || ev.wd != -1 || ev.mask != notify.QOverflow || ev.cookie != 9 || len(ev.name) != 0 || len(rest) != 0 {
		t.Fatalf("second: %+v, %v", ev, err)
	}
	for cut := 1; cut < 32; cut++ {
		if _, _, err := next(b[:cut]); !errors.Is(err, errMalformed) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(record(1, unix.IN_CREATE, 0, "f"))
	f.Add(append(record(1, unix.IN_MOVED_FROM, 5, "f"), record(2, unix.IN_MOVED_TO, 5, "a much longer name")...))
	f.Add(record(-1, unix.IN_Q_OVERFLOW, 0, ""))
	f.Add([]byte{1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		wt := newWatchTable()
		wt.byWd[1] = &watch{dir: notify.Object{FS: 1, Type: 1, Handle: "d"}}
		for len(b) > 0 {
			ev, rest, err := next(b)
			if err != nil {
				return
			}
			if len(rest) > len(b)-eventLen || len(ev.name) > len(b)-len(rest)-eventLen {
				t.Fatalf("record of %d bytes has a name of %d", len(b)-len(rest), len(ev.name))
			}
			if r, ok := wt.raw(ev); ok && r.Mask&notify.QOverflow == 0 && r.Dir.IsZero() {
				t.Fatal("a record without a directory")
			}
			b = rest
		}
	})
}
