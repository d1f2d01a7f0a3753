// Package nodeid keeps what is known by nodeid. Nodeids are counted up and never used again, so
// a table of pages needs about one pointer for each, where a map needs four.
package nodeid

import "iter"

// PageSize is how many nodeids in a row share a page: who deals ids out in pages wastes none.
const PageSize = 64

type page[T any] [PageSize]*T

// Table finds values by nodeid. The zero Table is empty. Whoever shares one guards it.
type Table[T any] struct {
	pages map[uint64]*page[T]
	n     int
	// newest is the page that was made last: it stays when it is empty, since the next value comes into it.
	newest uint64
}

// Get returns the value of id, or nil.
func (t *Table[T]) Get(id uint64) *T {
	if p := t.pages[id/PageSize]; p != nil {
		return p[id%PageSize]
	}
	return nil
}

// Len returns how many values there are.
func (t *Table[T]) Len() int { return t.n }

// Put sets the value of id, which is not nil.
func (t *Table[T]) Put(id uint64, v *T) {
	at := id / PageSize
	p := t.pages[at]
	if p == nil {
		p = t.open(at)
	}
	if p[id%PageSize] == nil {
		t.n++
	}
	p[id%PageSize] = v
}

func (t *Table[T]) open(at uint64) *page[T] {
	if t.pages == nil {
		t.pages = make(map[uint64]*page[T])
	}
	p := t.pages[t.newest]
	if p == nil || *p != (page[T]{}) {
		p = new(page[T])
	} else {
		delete(t.pages, t.newest)
	}
	t.pages[at], t.newest = p, at
	return p
}

// Delete removes the value of id.
func (t *Table[T]) Delete(id uint64) {
	at := id / PageSize
	p := t.pages[at]
	if p == nil || p[id%PageSize] == nil {
		return
	}
	p[id%PageSize] = nil
	t.n--
	if at != t.newest && *p == (page[T]{}) {
		delete(t.pages, at)
	}
}

// All yields every value, in no order. The one that is yielded may be deleted.
func (t *Table[T]) All() iter.Seq2[uint64, *T] {
	return func(yield func(uint64, *T) bool) {
		for at, p := range t.pages {
			for i, v := range p {
				if v != nil && !yield(at*PageSize+uint64(i), v) {
					return
				}
			}
		}
	}
}

// Above appends to dst, in order, up to count of the ids that are above after and not above last.
func (t *Table[T]) Above(dst []uint64, after, last uint64, count int) []uint64 {
	for at := (after + 1) / PageSize; at <= last/PageSize && count > 0; at++ {
		p := t.pages[at]
		if p == nil {
			continue
		}
		for i, v := range p {
			if id := at*PageSize + uint64(i); v != nil && id > after && id <= last && count > 0 {
				dst = append(dst, id)
				count--
			}
		}
	}
	return dst
}

// Clear removes all.
func (t *Table[T]) Clear() { *t = Table[T]{} }
