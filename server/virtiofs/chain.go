package virtiofs

import "fmt"

const (
	// maxChain bounds the descriptors of one request: a request of 1 MiB has 256 pages
	// and a few headers, and a queue has at most 1024 entries in practice.
	maxChain = 1024
	// maxParts bounds its pieces of memory: a descriptor can cross regions.
	maxParts = maxChain + maxRegions
	// maxBytes bounds each direction: go-fuse moves at most 1 MiB of data at once.
	maxBytes = 1<<20 + 64<<10
)

// chain is one request: what the guest wrote for us, and where we may write.
type chain struct {
	in, out       [][]byte
	inLen, outLen int
}

// walk follows the chain that starts at head. Every entry is copied before it
// is looked at. The number of entries is bounded, so a loop ends.
func (r *vring) walk(m *memory, head uint16) (c chain, err error) {
	table, size := r.desc, r.num
	next := uint32(head)
	indirect := false
	for count := 0; ; count++ {
		if next >= size {
			return c, fmt.Errorf("%w: descriptor %d of %d", ErrGuest, next, size)
		}
		if count >= maxChain {
			return c, fmt.Errorf("%w: chain of more than %d descriptors", ErrGuest, maxChain)
		}
		d := readDesc(table, next)
		if d.flags&descIndirect != 0 {
			if indirect || d.flags&descNext != 0 {
				return c, fmt.Errorf("%w: misplaced indirect descriptor, flags %#x", ErrGuest, d.flags)
			}
			if table, err = indirectTable(m, d); err != nil {
				return c, err
			}
			indirect, size, next = true, uint32(len(table)/descSize), 0
			continue
		}
		if err := c.add(m, d); err != nil {
			return c, err
		}
		if d.flags&descNext == 0 {
			return c, nil
		}
		next = uint32(d.next)
	}
}

// indirectTable returns the table that d refers to. One that crosses regions is copied.
func indirectTable(m *memory, d descriptor) ([]byte, error) {
	if d.len == 0 || d.len%descSize != 0 || d.len > maxChain*descSize {
		return nil, fmt.Errorf("%w: indirect table of %d bytes", ErrGuest, d.len)
	}
	parts, err := m.guest(nil, d.addr, uint64(d.len))
	if err != nil {
		return nil, err
	}
	if len(parts) == 1 {
		return parts[0], nil
	}
	return gather(parts, 0, int(d.len)), nil
}

func (c *chain) add(m *memory, d descriptor) error {
	list, total := &c.in, &c.inLen
	if d.flags&descWrite != 0 {
		list, total = &c.out, &c.outLen
	} else if len(c.out) > 0 {
		return fmt.Errorf("%w: readable descriptor after a writable one", ErrGuest)
	}
	if uint64(*total)+uint64(d.len) > maxBytes {
		return fmt.Errorf("%w: request of more than %d bytes", ErrGuest, maxBytes)
	}
	var err error
	if *list, err = m.guest(*list, d.addr, uint64(d.len)); err != nil {
		return err
	}
	if len(*list) > maxParts {
		return fmt.Errorf("%w: request in more than %d pieces", ErrGuest, maxParts)
	}
	*total += int(d.len)
	return nil
}

// gather copies n bytes of parts from off into memory of ours; fewer if there are no more.
func gather(parts [][]byte, off, n int) []byte {
	b := make([]byte, 0, n)
	for _, p := range parts {
		if off >= len(p) {
			off -= len(p)
			continue
		}
		p = p[off:]
		off = 0
		b = append(b, p[:min(len(p), n-len(b))]...)
		if len(b) == n {
			break
		}
	}
	return b
}

// tail returns parts without their first n bytes.
func tail(parts [][]byte, n int) [][]byte {
	for i, p := range parts {
		if n < len(p) {
			rest := append([][]byte{p[n:]}, parts[i+1:]...)
			return rest
		}
		n -= len(p)
	}
	return nil
}

// scatter copies b into parts and returns how much fitted.
func scatter(parts [][]byte, b []byte) int {
	n := 0
	for _, p := range parts {
		n += copy(p, b[n:])
	}
	return n
}
