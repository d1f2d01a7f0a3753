package replay

import (
	"hash/maphash"
	"math/bits"
)

// kids finds the children of a directory by name. The names are the inodes' own: a slot
// is a pointer, and a byte of hash that saves most looks at the wrong inode.
type kids struct {
	seed  maphash.Seed
	slots []*vnode
	tags  []uint8 // 0 is an empty slot
	n     int
}

func (k *kids) hash(name string) (home int, tag uint8) {
	h := maphash.String(k.seed, name)
	hi, _ := bits.Mul64(h, uint64(len(k.slots)))
	return int(hi), uint8(h) | 0x80
}

// find returns the slot of name, or -1.
func (k *kids) find(name string) int {
	if k == nil || k.n == 0 {
		return -1
	}
	i, tag := k.hash(name)
	for ; k.tags[i] != 0; i = k.next(i) {
		if k.tags[i] == tag && k.slots[i].nameLocked() == name {
			return i
		}
	}
	return -1
}

func (k *kids) next(i int) int {
	if i++; i == len(k.slots) {
		return 0
	}
	return i
}

// add puts n in by its name, which is not there.
func (k *kids) add(n *vnode) {
	if (k.n+1)*5 > len(k.slots)*4 {
		k.resize(max(4, len(k.slots)+len(k.slots)/2))
	}
	k.n++
	k.put(n)
}

func (k *kids) put(n *vnode) {
	i, tag := k.hash(n.nameLocked())
	for k.tags[i] != 0 {
		i = k.next(i)
	}
	k.slots[i], k.tags[i] = n, tag
}

func (k *kids) resize(size int) {
	old := k.slots
	k.slots, k.tags = make([]*vnode, size), make([]uint8, size)
	for _, n := range old {
		if n != nil {
			k.put(n)
		}
	}
}

// remove empties a slot. What was pushed past it moves back, so that every search still ends.
func (k *kids) remove(i int) {
	for j := k.next(i); k.tags[j] != 0; j = k.next(j) {
		home, _ := k.hash(k.slots[j].nameLocked())
		between := i < home && home <= j
		if j < i {
			between = i < home || home <= j
		}
		if !between {
			k.slots[i], k.tags[i] = k.slots[j], k.tags[j]
			i = j
		}
	}
	k.slots[i], k.tags[i] = nil, 0
	if k.n--; k.n*3 < len(k.slots) && len(k.slots) > 16 {
		k.resize(k.n*3/2 + 4)
	}
}
