package passthrough

import (
	"encoding/binary"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/heraldfs/heraldfs/notify"
)

// TestNodeSize: there are millions of them. A size is rounded up to one of Go's classes.
func TestNodeSize(t *testing.T) {
	if size := unsafe.Sizeof(node{}); size > 96 {
		t.Errorf("a node has %d bytes, at most 96", size)
	}
}

// TestTable compares with a list, and looks whether a hash chain gets long.
func TestTable(t *testing.T) {
	mounts := []*mount{{id: 1}, {id: 2}}
	devs := []*device{{mnt: mounts[0], fsid: 7}, {mnt: mounts[1], fsid: 7}, {mnt: mounts[1], fsid: 8}}
	rapid.Check(t, func(t *rapid.T) {
		table := newTable()
		var model []*node
		fresh := func(i, dev int, long bool) *node {
			handle := binary.NativeEndian.AppendUint32(nil, uint32(i))
			if long {
				handle = append(handle, make([]byte, inlineHandle)...)
			}
			return newNode(devs[dev], unix.S_IFREG, 1, handle)
		}
		known := func(obj notify.Object, m *mount) *node {
			for _, n := range model {
				if n.dev.mnt == m && n.object() == obj {
					return n
				}
			}
			return nil
		}
		number, dev := rapid.IntRange(0, 3*segment), rapid.IntRange(0, len(devs)-1)
		t.Repeat(map[string]func(*rapid.T){
			"insert many": func(t *rapid.T) {
				at, d := number.Draw(t, "from"), dev.Draw(t, "dev")
				for i := range rapid.IntRange(1, 300).Draw(t, "count") {
					n := fresh(at+i, d, i%5 == 0)
					old := known(n.object(), n.dev.mnt)
					got, inserted := table.insert(n)
					if inserted != (old == nil) || !inserted && got != old {
						t.Fatalf("insert: %v, was known: %v", inserted, old != nil)
					}
					if inserted {
						model = append(model, n)
					}
				}
			},
			"forget many": func(t *rapid.T) {
				for range min(len(model), rapid.IntRange(1, 300).Draw(t, "count")) {
					i := len(model) / 2
					n := model[i]
					last := n.lookups.Load()
					if last > 1 && table.forget(n.id, last-1) != nil {
						t.Fatal("forgotten too early")
					}
					if table.forget(n.id, 1) != n || table.get(n.id) != nil {
						t.Fatal("not forgotten")
					}
					model = slices.Delete(model, i, i+1)
				}
			},
			"find": func(t *rapid.T) {
				n := fresh(number.Draw(t, "handle"), dev.Draw(t, "dev"), rapid.Bool().Draw(t, "long"))
				if got := table.find(n.object(), n.dev.mnt); got != known(n.object(), n.dev.mnt) {
					t.Fatalf("found %v", got)
				}
				var ids []uint64
				for _, k := range model {
					if k.object() == n.object() {
						ids = append(ids, k.id)
					}
				}
				got := table.ids(nil, n.object())
				slices.Sort(got)
				slices.Sort(ids)
				if !slices.Equal(got, ids) {
					t.Fatalf("ids %v, must be %v", got, ids)
				}
			},
			"": func(t *rapid.T) {
				byID, byObj := 0, uint64(0)
				for i := range table.shards {
					s := &table.shards[i]
					b := &s.byObj
					if b.half > b.n || b.n >= 2*b.half || b.count > longChain*b.n {
						t.Fatalf("%d buckets, half %d, of %d nodes", b.n, b.half, b.count)
					}
					byID, byObj = byID+s.byID.Len(), byObj+b.count
				}
				if byID != len(model) || byObj != uint64(len(model)) || table.len() != len(model) {
					t.Fatalf("%d, %d and %d nodes, must be %d", byID, byObj, table.len(), len(model))
				}
				ids := table.oldest(nil, 0, len(model)+1)
				if len(ids) != len(model) || !slices.IsSorted(ids) {
					t.Fatalf("%d of %d nodes by age", len(ids), len(model))
				}
				if half := table.oldest(nil, 0, len(ids)/2); !slices.Equal(half, ids[:len(ids)/2]) {
					t.Fatal("half of the nodes by age")
				}
				for _, n := range model {
					if table.get(n.id) != n {
						t.Fatalf("node %d is lost", n.id)
					}
				}
			},
		})
	})
}
