package replay

import (
	"fmt"
	"hash/maphash"
	"testing"
	"unsafe"

	"pgregory.net/rapid"
)

// TestVnodeSize: there are millions of them. A size is rounded up to one of Go's classes.
func TestVnodeSize(t *testing.T) {
	if size := unsafe.Sizeof(vnode{}); size > 64 {
		t.Errorf("a vnode has %d bytes, at most 64", size)
	}
}

// TestKids compares with a map.
func TestKids(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := &kids{seed: maphash.MakeSeed()}
		model := map[string]*vnode{}
		number := rapid.IntRange(0, 200)
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				at := number.Draw(t, "from")
				for i := range number.Draw(t, "count") {
					name := fmt.Sprint(at + i)
					if model[name] == nil {
						n := &vnode{}
						n.setFirst(n, name)
						k.add(n)
						model[name] = n
					}
				}
			},
			"remove": func(t *rapid.T) {
				at := number.Draw(t, "from")
				for i := range number.Draw(t, "count") {
					name := fmt.Sprint(at + i)
					if slot := k.find(name); slot >= 0 {
						k.remove(slot)
					}
					delete(model, name)
				}
			},
			"": func(t *rapid.T) {
				if k.n != len(model) {
					t.Fatalf("%d names, must be %d", k.n, len(model))
				}
				for i := range 401 {
					name := fmt.Sprint(i)
					slot := k.find(name)
					if slot < 0 && model[name] != nil || slot >= 0 && k.slots[slot] != model[name] {
						t.Fatalf("%s is in slot %d, must be %p", name, slot, model[name])
					}
				}
			},
		})
	})
}

// TestLookupCountIsWide: who looks up without end for hours counts past 32 bits.
func TestLookupCountIsWide(t *testing.T) {
	n := &vnode{}
	for _, count := range []uint64{1, 1<<32 - 1, 1 << 32, 1<<40 + 5, 1 << 32, 1<<32 - 1, 0} {
		if n.setLookups(count); n.lookups() != count {
			t.Errorf("%d, must be %d", n.lookups(), count)
		}
	}
}
