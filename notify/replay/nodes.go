package replay

import (
	"github.com/heraldfs/heraldfs/notify"
)

// nodes returns the known nodeids of a and b side by side, one pair for each mount
// that either is known on; zero where one is not known.
func (r *Replayer) nodes(a, b notify.Object) (as, bs []uint64) {
	r.idsA, r.idsB = r.idsA[:0], r.idsB[:0]
	if !a.IsZero() {
		r.idsA = r.tree.NodeIDs(r.idsA, a)
	}
	if !b.IsZero() {
		r.idsB = r.tree.NodeIDs(r.idsB, b)
	}
	if len(r.idsA) <= 1 && len(r.idsB) <= 1 {
		r.idsA = pad(r.idsA, len(r.idsB))
		r.idsB = pad(r.idsB, len(r.idsA))
		return r.idsA, r.idsB
	}
	var pa, pb []uint64
	for _, x := range r.idsA {
		y := r.onMount(r.idsB, r.mount(x))
		pa, pb = append(pa, x), append(pb, y)
	}
	for _, y := range r.idsB {
		if r.onMount(r.idsA, r.mount(y)) == 0 {
			pa, pb = append(pa, 0), append(pb, y)
		}
	}
	return pa, pb
}

func pad(ids []uint64, n int) []uint64 {
	for len(ids) < n {
		ids = append(ids, 0)
	}
	return ids
}

func (r *Replayer) mount(nodeid uint64) uint64 {
	// Memory only, as NodeIDs: it can be asked directly.
	if m, ok := r.cfg.Tree.(interface{ MountID(uint64) uint64 }); ok {
		return m.MountID(nodeid)
	}
	return 0
}

func (r *Replayer) onMount(ids []uint64, mount uint64) uint64 {
	for _, id := range ids {
		if r.mount(id) == mount {
			return id
		}
	}
	return 0
}

// object returns the node that the guest knows for obj on the mount of near.
func (r *Replayer) object(obj notify.Object, near uint64) *vnode {
	if obj.IsZero() {
		return nil
	}
	r.idC = r.tree.NodeIDs(r.idC[:0], obj)
	switch {
	case len(r.idC) == 0:
		return nil
	case len(r.idC) == 1 || near == stagingID:
		return r.view.node(r.idC[0])
	}
	return r.view.node(r.onMount(r.idC, r.mount(near)))
}
