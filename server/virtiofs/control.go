package virtiofs

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// Feature bits of the device.
const (
	featureIndirect = 1 << 28
	featureEventIdx = 1 << 29
	// featureProtocol is VHOST_USER_F_PROTOCOL_FEATURES.
	featureProtocol = 1 << 30
	featureVersion1 = 1 << 32

	deviceFeatures = featureIndirect | featureEventIdx | featureProtocol | featureVersion1
)

// Feature bits of the protocol.
const (
	protocolMQ          = 1 << 0
	protocolReplyAck    = 1 << 3
	protocolConfig      = 1 << 9
	protocolInflight    = 1 << 12
	protocolResetDevice = 1 << 13
	protocolMemSlots    = 1 << 15
	protocolStatus      = 1 << 16
)

// protocolFeatures offers CONFIG only with something to say: a VMM that has the tag
// from its own command line warns about it.
func (d *device) protocolFeatures() uint64 {
	f := uint64(protocolMQ | protocolReplyAck | protocolInflight | protocolResetDevice | protocolMemSlots | protocolStatus)
	if d.opts.Tag != "" {
		f |= protocolConfig
	}
	return f
}

// reply is what goes back besides an acknowledgement. Its descriptor is the sender's to close.
type reply struct {
	payload []byte
	fd      int
}

func replyWith(b []byte) *reply { return &reply{payload: b, fd: -1} }

// control carries out one message. An error that the front-end cannot be told of ends the connection.
func (d *device) control(m *message) (*reply, error) {
	switch m.request {
	case reqGetFeatures:
		return replyWith(u64Bytes(deviceFeatures)), nil
	case reqSetFeatures:
		return nil, d.setFeatures(m)
	case reqGetProtocolFeatures:
		return replyWith(u64Bytes(d.protocolFeatures())), nil
	case reqSetProtocolFeatures:
		return nil, d.setProtocolFeatures(m)
	case reqGetQueueNum:
		return replyWith(u64Bytes(uint64(len(d.queues)))), nil
	case reqSetOwner, reqResetOwner:
		return nil, nil
	case reqSetMemTable, reqAddMemReg, reqRemMemReg:
		return nil, d.changeMemory(m)
	case reqGetMaxMemSlots:
		return replyWith(u64Bytes(maxRegions)), nil
	case reqSetVringNum, reqSetVringBase, reqSetVringEnable, reqSetVringAddr:
		return nil, d.setVring(m)
	case reqSetVringKick, reqSetVringCall, reqSetVringErr:
		return nil, d.setVringFD(m)
	case reqGetVringBase:
		return d.getVringBase(m)
	case reqGetConfig:
		return d.getConfig(m)
	case reqGetInflightFD, reqSetInflightFD:
		return d.inflightFD(m)
	case reqResetDevice:
		d.stopQueues()
		d.endSession()
		return nil, nil
	case reqSetStatus:
		v, err := m.u64()
		d.status = uint8(v)
		return nil, err
	case reqGetStatus:
		return replyWith(u64Bytes(uint64(d.status))), nil
	case reqSetLogBase, reqSetLogFD:
		return nil, fmt.Errorf("logging of dirty pages: %w", notify.ErrNotSupported)
	case reqSetConfig:
		return nil, fmt.Errorf("a writable configuration: %w", notify.ErrNotSupported)
	}
	return nil, fmt.Errorf("request %d: %w", m.request, notify.ErrNotSupported)
}

func (d *device) setFeatures(m *message) error {
	f, err := m.u64()
	if err != nil {
		return err
	}
	if f&^deviceFeatures != 0 {
		return fmt.Errorf("%w: features %#x were not offered", ErrProtocol, f&^deviceFeatures)
	}
	d.features = f
	if f&featureProtocol == 0 {
		// Without SET_VRING_ENABLE rings are enabled from the start.
		for _, q := range d.queues {
			q.enable(true)
		}
	}
	return nil
}

func (d *device) setProtocolFeatures(m *message) error {
	f, err := m.u64()
	if err != nil {
		return err
	}
	if extra := f &^ d.protocolFeatures(); extra != 0 {
		return fmt.Errorf("%w: protocol features %#x were not offered", ErrProtocol, extra)
	}
	return nil
}

func (d *device) changeMemory(m *message) error {
	if m.request == reqSetMemTable {
		return d.setMemTable(m)
	}
	info, err := m.memRegion()
	if err != nil {
		return err
	}
	var next *memory
	if m.request == reqRemMemReg {
		// Some front-ends send the descriptor along; it is closed with the message.
		next, err = d.mem.without(info)
	} else {
		if len(m.fds) != 1 {
			return fmt.Errorf("%w: memory region with %d descriptors", ErrProtocol, len(m.fds))
		}
		var r *region
		if r, err = mapRegion(info, m.fds[0]); err == nil {
			next, err = d.mem.with(r)
		}
	}
	if err != nil {
		return err
	}
	return d.setMemory(next)
}

func (d *device) setMemTable(m *message) error {
	infos, err := m.memTable()
	if err != nil {
		return err
	}
	next := newMemory(nil)
	for i, info := range infos {
		r, err := mapRegion(info, m.fds[i])
		if err == nil {
			var with *memory
			if with, err = next.with(r); err == nil {
				next.release()
				next = with
			}
		}
		if err != nil {
			next.release()
			return err
		}
	}
	return d.setMemory(next)
}

func (d *device) setVring(m *message) error {
	if m.request == reqSetVringAddr {
		index, a, err := m.vringAddr()
		if err != nil {
			return err
		}
		q, err := d.queue(index)
		if err != nil {
			return err
		}
		return q.setAddr(a)
	}
	index, num, err := m.vringState()
	if err != nil {
		return err
	}
	q, err := d.queue(index)
	if err != nil {
		return err
	}
	if m.request == reqSetVringEnable {
		q.enable(num != 0)
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.started:
		return fmt.Errorf("%w: request %d for a started queue", ErrProtocol, m.request)
	case m.request == reqSetVringBase:
		if num > 0xffff {
			return fmt.Errorf("%w: queue base %d", ErrProtocol, num)
		}
		q.lastAvail = uint16(num)
	case num == 0 || num > maxQueueSize || num&(num-1) != 0:
		return fmt.Errorf("%w: queue size %d", ErrProtocol, num)
	default:
		q.num = num
	}
	return nil
}

func (d *device) setVringFD(m *message) error {
	index, fd, err := m.vringFD()
	if err != nil {
		return err
	}
	q, err := d.queue(index)
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return err
	}
	switch m.request {
	case reqSetVringCall:
		q.setEvent(&q.call, fd)
		return nil
	case reqSetVringErr:
		q.setEvent(&q.errfd, fd)
		return nil
	}
	if fd < 0 {
		return fmt.Errorf("a queue without a kick descriptor: %w", notify.ErrNotSupported)
	}
	// A front-end that replaces the kick of a running ring goes on where it was.
	q.stop()
	if !d.anyStarted() {
		d.broken.Store(false)
	}
	q.mu.Lock()
	num := q.num
	q.mu.Unlock()
	return q.start(d.mem, fd, d.features, d.inflight.queue(int(index), num))
}

func (d *device) getVringBase(m *message) (*reply, error) {
	index, _, err := m.vringState()
	if err != nil {
		return nil, err
	}
	q, err := d.queue(index)
	if err != nil {
		return nil, err
	}
	q.stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	b := binary.LittleEndian.AppendUint32(nil, index)
	return replyWith(binary.LittleEndian.AppendUint32(b, uint32(q.lastAvail))), nil
}

// The configuration space: tag [36]u8, num_request_queues u32.
const (
	tagSize = 36
	// maxConfig is VHOST_USER_MAX_CONFIG_SIZE.
	maxConfig = 256
)

// getConfig answers { offset u32, size u32, flags u32 } with the same and the bytes; a
// reply without payload is the protocol's way to refuse.
func (d *device) getConfig(m *message) (*reply, error) {
	if len(m.payload) < 12 {
		return nil, m.want(12)
	}
	offset := binary.LittleEndian.Uint32(m.payload)
	size := binary.LittleEndian.Uint32(m.payload[4:])
	if d.opts.Tag == "" || size > maxConfig || offset > maxConfig-size {
		return replyWith(nil), nil
	}
	var space [maxConfig]byte
	copy(space[:tagSize], d.opts.Tag)
	binary.LittleEndian.PutUint32(space[tagSize:], uint32(d.opts.Queues))
	return replyWith(append(m.payload[:12:12], space[offset:offset+size]...)), nil
}

func (d *device) inflightFD(m *message) (*reply, error) {
	info, err := m.inflight()
	if err != nil {
		return nil, err
	}
	if err := info.check(len(d.queues)); err != nil {
		return nil, err
	}
	if m.request == reqGetInflightFD {
		info, fd, err := newInflight(info)
		if err != nil {
			return nil, err
		}
		return &reply{payload: info.bytes(len(m.payload)), fd: fd}, nil
	}
	if d.anyStarted() {
		return nil, fmt.Errorf("%w: in-flight buffer for started queues", ErrProtocol)
	}
	if len(m.fds) != 1 {
		return nil, fmt.Errorf("%w: in-flight buffer with %d descriptors", ErrProtocol, len(m.fds))
	}
	f, err := mapInflight(info, m.fds[0])
	if err != nil {
		return nil, err
	}
	d.inflight.unmap()
	d.inflight = f
	return nil, nil
}
