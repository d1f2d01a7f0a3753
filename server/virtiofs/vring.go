package virtiofs

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"
)

// Bits of the split virtqueue (virtio 1.2, 2.7).
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	availNoInterrupt = 1
	usedNoNotify     = 1

	descSize = 16
	usedSize = 8

	// maxQueueSize is the largest that the specification allows.
	maxQueueSize = 32768
)

// vring is the memory of a split virtqueue:
//
//	desc   num * { addr u64, len u32, flags u16, next u16 }
//	avail  flags u16, idx u16, ring[num] u16, used_event u16
//	used   flags u16, idx u16, ring[num] { id u32, len u32 }, avail_event u16
type vring struct {
	num               uint32
	desc, avail, used []byte
}

// resolveRing finds the ring's parts in memory.
func resolveRing(m *memory, a vringAddr, num uint32) (r vring, err error) {
	r.num = num
	for _, part := range []struct {
		dst  *[]byte
		addr uint64
		size uint64
		// align is the specification's; used is accessed in words of 32 bits.
		align uintptr
	}{
		{&r.desc, a.desc, uint64(num) * descSize, 16},
		{&r.avail, a.avail, uint64(num)*2 + 6, 2},
		{&r.used, a.used, uint64(num)*usedSize + 6, 4},
	} {
		b, err := m.user(part.addr, part.size)
		if err != nil {
			return vring{}, err
		}
		if uintptr(unsafe.Pointer(unsafe.SliceData(b)))%part.align != 0 {
			return vring{}, fmt.Errorf("%w: ring at %#x is not aligned to %d", ErrProtocol, part.addr, part.align)
		}
		*part.dst = b
	}
	return r, nil
}

// word is the aligned 32-bit word that holds the 16 bits at b[off], and their
// place in it. Regions are mapped in pages, so the word is in the region's mapping.
func word(b []byte, off uint32) (p *uint32, shift uint32) {
	at := unsafe.Pointer(&b[off])
	rest := uintptr(at) & 3
	return (*uint32)(unsafe.Add(at, -int(rest))), uint32(rest) * 8
}

// load16 reads 16 bits that the guest writes, and what it wrote before them can be read after.
func load16(b []byte, off uint32) uint16 {
	p, shift := word(b, off)
	return uint16(atomic.LoadUint32(p) >> shift)
}

// store16 writes 16 bits so that the guest sees all that was written before, and
// a load after it is not done earlier.
func store16(b []byte, off uint32, v uint16) {
	p, shift := word(b, off)
	for {
		old := atomic.LoadUint32(p)
		if atomic.CompareAndSwapUint32(p, old, old&^(0xffff<<shift)|uint32(v)<<shift) {
			return
		}
	}
}

func (r *vring) availFlags() uint16 { return load16(r.avail, 0) }
func (r *vring) availIdx() uint16   { return load16(r.avail, 2) }

func (r *vring) availHead(idx uint16) uint16 {
	return binary.LittleEndian.Uint16(r.avail[4+2*(uint32(idx)%r.num):])
}

// usedEvent is the index at which the guest wants to be called.
func (r *vring) usedEvent() uint16 { return load16(r.avail, 4+2*r.num) }

func (r *vring) setUsedFlags(flags uint16) { store16(r.used, 0, flags) }
func (r *vring) usedIdx() uint16           { return load16(r.used, 2) }
func (r *vring) setUsedIdx(idx uint16)     { store16(r.used, 2, idx) }

func (r *vring) setUsed(idx uint16, head uint16, n uint32) {
	off := 4 + usedSize*(uint32(idx)%r.num)
	binary.LittleEndian.PutUint32(r.used[off:], uint32(head))
	binary.LittleEndian.PutUint32(r.used[off+4:], n)
}

// setAvailEvent is the index after which we want to be kicked.
func (r *vring) setAvailEvent(idx uint16) { store16(r.used, 4+usedSize*r.num, idx) }

// descriptor is a private copy of a table entry.
type descriptor struct {
	addr        uint64
	len         uint32
	flags, next uint16
}

// readDesc copies the entry, byte for byte once: the guest may change it meanwhile.
func readDesc(table []byte, i uint32) descriptor {
	var b [descSize]byte
	copy(b[:], table[i*descSize:])
	return descriptor{
		addr:  binary.LittleEndian.Uint64(b[0:]),
		len:   binary.LittleEndian.Uint32(b[8:]),
		flags: binary.LittleEndian.Uint16(b[12:]),
		next:  binary.LittleEndian.Uint16(b[14:]),
	}
}
