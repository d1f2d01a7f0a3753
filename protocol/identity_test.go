package protocol

import (
	"testing"

	"github.com/heraldfs/heraldfs/notify"
)

func TestSealer(t *testing.T) {
	s := NewSealer(seq(32, 1))
	obj := notify.Object{FS: 7, Type: 1, Handle: "handle"}
	id := s.Seal(obj)
	if got, ok := s.Open(id); !ok || got != obj {
		t.Fatalf("got %v, %v", got, ok)
	}
	if again := s.Seal(obj); again != id {
		t.Error("one object, two identities")
	}
	forged := []Identity{id, id, id, id}
	forged[0].FS++
	forged[1].Type++
	forged[2].Handle = "handlf"
	forged[3].MAC[MACSize-1] ^= 1
	for i, f := range forged {
		if _, ok := s.Open(f); ok {
			t.Errorf("forgery %d was accepted", i)
		}
	}
	if _, ok := NewSealer(seq(32, 2)).Open(id); ok {
		t.Error("another server's identity was accepted")
	}
	if !s.Seal(notify.Object{}).IsZero() || !s.Seal(notify.Object{Type: notify.TypeInode, Handle: "0123456789abcdef"}).IsZero() {
		t.Error("an object that has no handle has an identity")
	}
}

func TestOps(t *testing.T) {
	for o := OpCreate; o.Known(); o++ {
		if OpOf(o.Notify()) != o {
			t.Errorf("%v does not come back", o)
		}
	}
	if OpOf(notify.OpOverflow) != 0 || Op(200).Notify() != 0 {
		t.Error("an operation that has no number has one")
	}
}
