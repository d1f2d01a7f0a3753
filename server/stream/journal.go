package stream

import "sync"

// journal is the bounded memory of a stream. Its entries' sequences have no holes.
type journal struct {
	maxEvents int
	maxBytes  int

	mu sync.RWMutex
	// entries[off:] are kept; off moves on, and the slice is moved down when half of it is free.
	entries []*entry
	off     int
	bytes   int
	head    uint64 // the last sequence given out
}

// append takes entries that begin at head+1 and drops old ones beyond the bounds; the
// newest one is always kept.
func (j *journal) append(list []*entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range list {
		j.entries = append(j.entries, e)
		j.bytes += e.size()
		j.head = e.seq
	}
	for len(j.entries)-j.off > 1 && (len(j.entries)-j.off > j.maxEvents || j.bytes > j.maxBytes) {
		j.bytes -= j.entries[j.off].size()
		j.entries[j.off] = nil
		j.off++
	}
	if j.off > len(j.entries)/2 && j.off > 1024 {
		n := copy(j.entries, j.entries[j.off:])
		clear(j.entries[n:])
		j.entries = j.entries[:n]
		j.off = 0
	}
}

// firstLocked is the oldest sequence that is kept; head+1 if none is.
func (j *journal) firstLocked() uint64 {
	return j.head + 1 - uint64(len(j.entries)-j.off)
}

// bounds returns the oldest sequence kept and the last one given out.
func (j *journal) bounds() (first, head uint64) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.firstLocked(), j.head
}

// read appends to dst at most n entries from seq on. first is greater than seq if
// that is no longer kept; nothing is read then.
func (j *journal) read(dst []*entry, seq uint64, n int) (list []*entry, first uint64) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	first = j.firstLocked()
	if seq < first || seq > j.head {
		return dst, first
	}
	from := j.off + int(seq-first)
	to := min(from+n, len(j.entries))
	return append(dst, j.entries[from:to]...), first
}

// pressed returns the sequence below which entries may be dropped soon: the first quarter of a
// journal that is three quarters full. 0 is none.
func (j *journal) pressed() uint64 {
	j.mu.RLock()
	defer j.mu.RUnlock()
	n := len(j.entries) - j.off
	if n < j.maxEvents/4*3 && j.bytes < j.maxBytes/4*3 {
		return 0
	}
	return j.firstLocked() + uint64(n/4)
}
