package nodeid

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestTable compares with a map. The numbers are close to a page's ends, and far from each other.
func TestTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table Table[int]
		model := map[uint64]*int{}
		id := rapid.OneOf(rapid.Uint64Range(0, 3*PageSize), rapid.Uint64Range(1<<62-2, 1<<62+2))
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				at := id.Draw(t, "id")
				v := new(int)
				table.Put(at, v)
				model[at] = v
			},
			"delete": func(t *rapid.T) {
				at := id.Draw(t, "id")
				table.Delete(at)
				delete(model, at)
			},
			"above": func(t *rapid.T) {
				after, count := rapid.Uint64Range(0, 3*PageSize).Draw(t, "after"), rapid.IntRange(0, 10).Draw(t, "count")
				last := after + rapid.Uint64Range(0, 2*PageSize).Draw(t, "reach")
				var want []uint64
				for _, at := range slices.Sorted(maps.Keys(model)) {
					if at > after && at <= last && len(want) < count {
						want = append(want, at)
					}
				}
				if got := table.Above(nil, after, last, count); !slices.Equal(got, want) {
					t.Fatalf("%v, must be %v", got, want)
				}
			},
			"get": func(t *rapid.T) {
				if at := id.Draw(t, "id"); table.Get(at) != model[at] {
					t.Fatalf("%d is wrong", at)
				}
			},
			"": func(t *rapid.T) {
				if table.Len() != len(model) || !maps.Equal(maps.Collect(table.All()), model) {
					t.Fatalf("%v, must be %v", maps.Collect(table.All()), model)
				}
				for at, p := range table.pages {
					if at != table.newest && *p == (page[int]{}) {
						t.Fatalf("page %d is empty", at)
					}
				}
			},
		})
	})
}

// TestPutDeleteAllocatesNothing: what is looked up and forgotten at once opens no page.
func TestPutDeleteAllocatesNothing(t *testing.T) {
	var table Table[int]
	v, id := new(int), uint64(2)
	table.Put(1, v)
	table.Put(100, v)
	table.Delete(100)
	if got := testing.AllocsPerRun(1000, func() {
		id++
		table.Put(id+1000, v)
		table.Delete(id + 1000)
	}); got > 0 {
		t.Errorf("%v allocations", got)
	}
}
