package virtiofs

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// The in-flight buffer outlives us in the front-end's hands: the back-end that comes after a
// crash finds in it which requests were popped and never used. The layout is ours to
// choose but for restarts between versions; it is the one that the specification shows
// for split virtqueues:
//
//	features u64, version u16, desc_num u16, last_batch_head u16, used_idx u16
//	desc[desc_num] { inflight u8, padding [5]u8, next u16, counter u64 }
const (
	inflightHead    = 16
	inflightEntry   = 16
	inflightAlign   = 64
	inflightVersion = 1

	offVersion, offDescNum, offLastHead, offUsedIdx = 8, 10, 12, 14
	offNext, offCounter                             = 6, 8
)

// inflight is the mapped buffer of all queues.
type inflight struct {
	info   inflightInfo
	region *region
}

func inflightStride(queueSize uint16) uint64 {
	n := uint64(inflightHead) + inflightEntry*uint64(queueSize)
	return (n + inflightAlign - 1) &^ (inflightAlign - 1)
}

func (i inflightInfo) need() uint64 { return uint64(i.queues) * inflightStride(i.queueSize) }

func (i inflightInfo) check(maxQueues int) error {
	if i.queues == 0 || int(i.queues) > maxQueues || i.queueSize == 0 || i.queueSize > maxQueueSize {
		return fmt.Errorf("%w: in-flight buffer for %d queues of %d", ErrProtocol, i.queues, i.queueSize)
	}
	return nil
}

// newInflight makes the buffer that GET_INFLIGHT_FD asks for. The descriptor is the caller's.
func newInflight(info inflightInfo) (inflightInfo, int, error) {
	info.size, info.offset = info.need(), 0
	fd, err := unix.MemfdCreate("heraldfs-inflight", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return info, -1, fmt.Errorf("memfd_create: %w", err)
	}
	if err = unix.Ftruncate(fd, int64(info.size)); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		unix.Close(fd)
		return info, -1, fmt.Errorf("in-flight buffer: %w", err)
	}
	return info, fd, nil
}

// mapInflight maps what SET_INFLIGHT_FD gives; fd stays the caller's.
func mapInflight(info inflightInfo, fd int) (*inflight, error) {
	if info.size < info.need() {
		return nil, fmt.Errorf("%w: in-flight buffer of %d bytes, want %d", ErrProtocol, info.size, info.need())
	}
	r, err := mapRegion(regionInfo{size: info.need(), offset: info.offset}, fd)
	if err != nil {
		return nil, err
	}
	return &inflight{info: info, region: r}, nil
}

func (f *inflight) unmap() {
	if f != nil {
		f.region.release()
	}
}

// inflightQueue is one queue's part, guarded by queue.mu.
type inflightQueue struct {
	b       []byte
	num     uint32
	counter uint64
}

// queue returns nil if the buffer does not cover the queue.
func (f *inflight) queue(index int, num uint32) *inflightQueue {
	if f == nil || index >= int(f.info.queues) || num > uint32(f.info.queueSize) {
		return nil
	}
	stride := inflightStride(f.info.queueSize)
	return &inflightQueue{b: f.region.data[uint64(index)*stride:][:stride], num: num}
}

func (q *inflightQueue) get16(off int) uint16    { return binary.LittleEndian.Uint16(q.b[off:]) }
func (q *inflightQueue) put16(off int, v uint16) { store16(q.b, uint32(off), v) }
func (q *inflightQueue) entry(head uint16) []byte {
	return q.b[inflightHead+inflightEntry*int(head):][:inflightEntry]
}

// mark sets the in-flight byte after everything that was written before.
func (q *inflightQueue) mark(head uint16, v uint16) { store16(q.entry(head), 0, v) }

// begin notes that head was popped.
func (q *inflightQueue) begin(head uint16) {
	binary.LittleEndian.PutUint64(q.entry(head)[offCounter:], q.counter)
	q.counter++
	q.mark(head, 1)
}

// finish comes before the used index moves, settle after: a crash in between is
// seen by the index in the buffer being the old one.
func (q *inflightQueue) finish(head uint16) {
	binary.LittleEndian.PutUint16(q.entry(head)[offNext:], q.get16(offLastHead))
	q.put16(offLastHead, head)
}

func (q *inflightQueue) settle(head, usedIdx uint16) {
	q.mark(head, 0)
	q.put16(offUsedIdx, usedIdx)
}

// recover returns the heads that were popped and not used, in the order in which they were popped.
func (q *inflightQueue) recover(usedIdx uint16) []uint16 {
	if q.get16(offVersion) != inflightVersion {
		clear(q.b)
		q.put16(offDescNum, uint16(q.num))
		q.put16(offUsedIdx, usedIdx)
		q.put16(offVersion, inflightVersion)
		return nil
	}
	if q.get16(offUsedIdx) != usedIdx {
		if last := q.get16(offLastHead); uint32(last) < q.num {
			q.mark(last, 0)
		}
		q.put16(offUsedIdx, usedIdx)
	}
	type open struct {
		head    uint16
		counter uint64
	}
	var left []open
	for i := range q.num {
		e := q.entry(uint16(i))
		c := binary.LittleEndian.Uint64(e[offCounter:])
		q.counter = max(q.counter, c+1)
		if e[0] == 1 {
			left = append(left, open{uint16(i), c})
		}
	}
	slices.SortFunc(left, func(a, b open) int {
		if a.counter < b.counter {
			return -1
		}
		return 1
	})
	heads := make([]uint16, len(left))
	for i, o := range left {
		heads[i] = o.head
	}
	return heads
}
