package replay

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// refs is a file system that can raise a lookup count.
type refs struct {
	fuse.RawFileSystem
	n int
}

func (r *refs) Ref(uint64) bool {
	r.n++
	return true
}

// TestEntryCounts follows the lookup count of what a step looked up itself and the kernel then asks for, maybe
// twice. In the end the file system has heard of as many forgets as it counted lookups.
func TestEntryCounts(t *testing.T) {
	for _, asks := range []uint64{0, 1, 2} {
		for _, canRef := range []bool{true, false} {
			raw := &refs{RawFileSystem: fuse.NewDefaultRawFileSystem()}
			f := NewFS(raw)
			if !canRef {
				f.RawFileSystem = raw.RawFileSystem
			}
			s := &step{op: opSetattr, src: side{parent: rootID, name: "a", entry: fileOut(10), node: &vnode{id: 10}}}
			counted := uint64(1) // by Obtain
			var out fuse.EntryOut
			for range asks {
				if st := f.answerLookup(s, rootID, "a", &out); !st.Ok() || out.NodeId != 10 {
					t.Fatalf("lookup: %v, node %d", st, out.NodeId)
				}
			}
			counted += uint64(raw.n)
			forgotten := uint64(0)
			if s.src.entry != nil {
				forgotten++ // by settle
				if asks > 0 && !canRef {
					t.Error("the kernel knows a node whose only lookup is given back")
				}
			}
			for range asks {
				forgotten += f.view.forget(10, 1)
			}
			if forgotten != counted {
				t.Errorf("asked %d times, with Ref %v: %d of %d lookups are given back", asks, canRef, forgotten, counted)
			}
		}
	}
}
