package virtiofs

import (
	"fmt"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxRegions bounds the memory slots that a front-end may add one by one.
const maxRegions = 64

// region is a piece of guest memory, mapped. It is unmapped with its last reference.
type region struct {
	regionInfo
	mapping []byte // from an aligned offset
	data    []byte // the region itself
	refs    atomic.Int32
}

// mapRegion maps what info describes from fd, which stays the caller's.
func mapRegion(info regionInfo, fd int) (*region, error) {
	for _, start := range []uint64{info.gpa, info.uva, info.offset} {
		if start+info.size < start {
			return nil, fmt.Errorf("%w: region at %#x of %#x bytes wraps", ErrProtocol, start, info.size)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("fstat of a memory region: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%w: memory region is not a file", ErrProtocol)
	}
	if info.size == 0 || info.offset+info.size > uint64(st.Size) {
		return nil, fmt.Errorf("%w: region of %#x bytes at %#x in a file of %#x", ErrProtocol, info.size, info.offset, st.Size)
	}
	// A hugetlbfs file wants offset and length in huge pages, which it shows as its block size.
	align := uint64(os.Getpagesize())
	if bs := uint64(st.Blksize); bs > align && bs&(bs-1) == 0 {
		align = bs
	}
	start := info.offset &^ (align - 1)
	length := (info.offset + info.size - start + align - 1) &^ (align - 1)
	if length > 1<<46 {
		return nil, fmt.Errorf("%w: region of %#x bytes", ErrProtocol, info.size)
	}
	m, err := unix.Mmap(fd, int64(start), int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mmap of a memory region: %w", err)
	}
	// The guest's memory has no place in a core dump of ours. It is only advice.
	_ = unix.Madvise(m, unix.MADV_DONTDUMP)
	r := &region{regionInfo: info, mapping: m}
	r.data = m[info.offset-start:][:info.size:info.size]
	r.refs.Store(1)
	return r, nil
}

func (r *region) release() {
	if r.refs.Add(-1) == 0 {
		// munmap of what mmap returned cannot fail.
		_ = unix.Munmap(r.mapping)
	}
}

// memory is a guest's memory at one time. It never changes: adding or removing
// a region makes another one. Each request in flight holds a reference, so the memory it works on
// stays mapped whatever the front-end does meanwhile.
type memory struct {
	regions []*region
	refs    atomic.Int32
}

// size is how many bytes there are.
func (m *memory) size() (n uint64) {
	for _, r := range m.regions {
		n += r.size
	}
	return n
}

// newMemory takes over one reference to each region.
func newMemory(regions []*region) *memory {
	m := &memory{regions: regions}
	m.refs.Store(1)
	return m
}

func (m *memory) acquire() { m.refs.Add(1) }

func (m *memory) release() {
	if m != nil && m.refs.Add(-1) == 0 {
		for _, r := range m.regions {
			r.release()
		}
	}
}

// with returns m and r, whose reference is taken over, also on error.
func (m *memory) with(r *region) (*memory, error) {
	for _, o := range m.regions {
		if r.gpa < o.gpa+o.size && o.gpa < r.gpa+r.size {
			r.release()
			return nil, fmt.Errorf("%w: memory regions at %#x and %#x overlap", ErrProtocol, r.gpa, o.gpa)
		}
	}
	if len(m.regions) >= maxRegions {
		r.release()
		return nil, fmt.Errorf("%w: more than %d memory regions", ErrProtocol, maxRegions)
	}
	return newMemory(append(m.shared(nil), r)), nil
}

// without returns m without the region that info names, offset and file aside.
func (m *memory) without(info regionInfo) (*memory, error) {
	i := slices.IndexFunc(m.regions, func(r *region) bool {
		return r.gpa == info.gpa && r.size == info.size && r.uva == info.uva
	})
	if i < 0 {
		return nil, fmt.Errorf("%w: no memory region at %#x to remove", ErrProtocol, info.gpa)
	}
	return newMemory(m.shared(m.regions[i])), nil
}

// shared returns the regions but one, with a reference to each.
func (m *memory) shared(but *region) []*region {
	rs := make([]*region, 0, len(m.regions)+1)
	for _, r := range m.regions {
		if r != but {
			r.refs.Add(1)
			rs = append(rs, r)
		}
	}
	return rs
}

// guest appends the n bytes at a guest physical address to dst, in as
// many pieces as regions are touched.
func (m *memory) guest(dst [][]byte, gpa, n uint64) ([][]byte, error) {
	for n > 0 {
		r := m.find(gpa)
		if r == nil {
			return dst, fmt.Errorf("%w: %#x bytes at %#x are not memory", ErrGuest, n, gpa)
		}
		off := gpa - r.gpa
		part := min(n, r.size-off)
		dst = append(dst, r.data[off:off+part:off+part])
		gpa += part
		n -= part
	}
	return dst, nil
}

func (m *memory) find(gpa uint64) *region {
	for _, r := range m.regions {
		if gpa >= r.gpa && gpa-r.gpa < r.size {
			return r
		}
	}
	return nil
}

// user returns the n bytes at an address of the front-end's address space, which must lie in one region.
func (m *memory) user(uva, n uint64) ([]byte, error) {
	for _, r := range m.regions {
		if uva >= r.uva && uva-r.uva < r.size {
			off := uva - r.uva
			if n > r.size-off {
				break
			}
			return r.data[off : off+n : off+n], nil
		}
	}
	return nil, fmt.Errorf("%w: ring of %#x bytes at %#x is not in memory", ErrProtocol, n, uva)
}
