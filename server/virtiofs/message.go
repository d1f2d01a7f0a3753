package virtiofs

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// Requests of the front-end. Those that are not listed are refused.
const (
	reqGetFeatures         = 1
	reqSetFeatures         = 2
	reqSetOwner            = 3
	reqResetOwner          = 4
	reqSetMemTable         = 5
	reqSetLogBase          = 6
	reqSetLogFD            = 7
	reqSetVringNum         = 8
	reqSetVringAddr        = 9
	reqSetVringBase        = 10
	reqGetVringBase        = 11
	reqSetVringKick        = 12
	reqSetVringCall        = 13
	reqSetVringErr         = 14
	reqGetProtocolFeatures = 15
	reqSetProtocolFeatures = 16
	reqGetQueueNum         = 17
	reqSetVringEnable      = 18
	reqGetConfig           = 24
	reqSetConfig           = 25
	reqGetInflightFD       = 31
	reqSetInflightFD       = 32
	reqResetDevice         = 34
	reqGetMaxMemSlots      = 36
	reqAddMemReg           = 37
	reqRemMemReg           = 38
	reqSetStatus           = 39
	reqGetStatus           = 40
)

// The message header: request, flags and payload size, 32 bits each.
const (
	headerSize = 12
	// maxPayload is more than any message that we know: a memory table of
	// eight regions has 264 bytes, a configuration of 256 has 268.
	maxPayload = 1024
	// maxMessageFDs is the number of regions of a memory table.
	maxMessageFDs = 8

	flagVersion     = 1
	flagVersionMask = 3
	flagReply       = 1 << 2
	flagNeedReply   = 1 << 3
)

// message is one request of the front-end. Its descriptors belong to it until
// takeFD; close closes what is left.
type message struct {
	request, flags uint32
	payload        []byte
	fds            []int
}

func (m *message) needReply() bool { return m.flags&flagNeedReply != 0 }

func (m *message) close() {
	for _, fd := range m.fds {
		unix.Close(fd)
	}
	m.fds = nil
}

// takeFD passes the message's only descriptor to the caller.
func (m *message) takeFD() (int, error) {
	if len(m.fds) != 1 {
		return -1, fmt.Errorf("%w: request %d with %d descriptors", ErrProtocol, m.request, len(m.fds))
	}
	fd := m.fds[0]
	m.fds = nil
	return fd, nil
}

// readMessage reads one message. Descriptors travel with its first byte.
func readMessage(c *net.UnixConn) (*message, error) {
	var head [headerSize]byte
	oob := make([]byte, unix.CmsgSpace(4*maxMessageFDs))
	n, oobn, flags, _, err := c.ReadMsgUnix(head[:], oob)
	m := &message{}
	if oobn > 0 {
		m.fds, err = parseRights(oob[:oobn], err)
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = fmt.Errorf("%w: more than %d descriptors", ErrProtocol, maxMessageFDs)
	}
	if err == nil && n < headerSize {
		_, err = io.ReadFull(c, head[n:])
	}
	var size uint32
	if err == nil {
		size, err = m.parseHeader(head[:])
	}
	if err == nil {
		m.payload = make([]byte, size)
		_, err = io.ReadFull(c, m.payload)
	}
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// parseRights returns the descriptors in oob even if err, so that they get closed.
func parseRights(oob []byte, err error) ([]int, error) {
	msgs, perr := unix.ParseSocketControlMessage(oob)
	if err == nil && perr != nil {
		err = fmt.Errorf("%w: control message: %w", ErrProtocol, perr)
	}
	var fds []int
	for i := range msgs {
		if got, perr := unix.ParseUnixRights(&msgs[i]); perr == nil {
			fds = append(fds, got...)
		}
	}
	return fds, err
}

func (m *message) parseHeader(b []byte) (size uint32, err error) {
	m.request = binary.LittleEndian.Uint32(b[0:])
	m.flags = binary.LittleEndian.Uint32(b[4:])
	size = binary.LittleEndian.Uint32(b[8:])
	switch {
	case m.flags&flagVersionMask != flagVersion:
		return 0, fmt.Errorf("%w: version %d", ErrProtocol, m.flags&flagVersionMask)
	case m.flags&flagReply != 0:
		return 0, fmt.Errorf("%w: request %d is marked as a reply", ErrProtocol, m.request)
	case size > maxPayload:
		return 0, fmt.Errorf("%w: request %d with %d bytes", ErrProtocol, m.request, size)
	}
	return size, nil
}

// encodeReply is the answer to request.
func encodeReply(request uint32, payload []byte) []byte {
	b := make([]byte, headerSize, headerSize+len(payload))
	binary.LittleEndian.PutUint32(b[0:], request)
	binary.LittleEndian.PutUint32(b[4:], flagVersion|flagReply)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(payload)))
	return append(b, payload...)
}

func u64Bytes(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

func (m *message) want(size int) error {
	if len(m.payload) != size {
		return fmt.Errorf("%w: request %d with %d bytes, want %d", ErrProtocol, m.request, len(m.payload), size)
	}
	return nil
}

func (m *message) u64() (uint64, error) {
	if err := m.want(8); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(m.payload), nil
}

// vringState is a queue's index and a number.
func (m *message) vringState() (index, num uint32, err error) {
	if err := m.want(8); err != nil {
		return 0, 0, err
	}
	return binary.LittleEndian.Uint32(m.payload), binary.LittleEndian.Uint32(m.payload[4:]), nil
}

// vringAddr is where the parts of a ring are, in the front-end's address space.
type vringAddr struct {
	flags             uint32
	desc, used, avail uint64
}

// vringAddr parses
//
//	index u32, flags u32, descriptor u64, used u64, available u64, log u64
func (m *message) vringAddr() (index uint32, a vringAddr, err error) {
	if err := m.want(40); err != nil {
		return 0, a, err
	}
	p := m.payload
	a.flags = binary.LittleEndian.Uint32(p[4:])
	a.desc = binary.LittleEndian.Uint64(p[8:])
	a.used = binary.LittleEndian.Uint64(p[16:])
	a.avail = binary.LittleEndian.Uint64(p[24:])
	return binary.LittleEndian.Uint32(p), a, nil
}

// vringFD parses the payload of SET_VRING_KICK and its like: bits 0 to 7 are the index, bit 8 says
// that there is no descriptor. fd is then -1; otherwise it is the caller's.
func (m *message) vringFD() (index uint32, fd int, err error) {
	v, err := m.u64()
	if err != nil {
		return 0, -1, err
	}
	index = uint32(v & 0xff)
	if v&0x100 != 0 {
		if len(m.fds) != 0 {
			return index, -1, fmt.Errorf("%w: request %d with an unannounced descriptor", ErrProtocol, m.request)
		}
		return index, -1, nil
	}
	fd, err = m.takeFD()
	return index, fd, err
}

// regionInfo describes a memory region: guest physical address, size, address in
// the front-end, offset in the file.
type regionInfo struct {
	gpa, size, uva, offset uint64
}

const regionInfoSize = 32

func parseRegion(b []byte) regionInfo {
	return regionInfo{
		gpa:    binary.LittleEndian.Uint64(b[0:]),
		size:   binary.LittleEndian.Uint64(b[8:]),
		uva:    binary.LittleEndian.Uint64(b[16:]),
		offset: binary.LittleEndian.Uint64(b[24:]),
	}
}

// memTable parses a count, padding, and as many regions, with a descriptor each.
func (m *message) memTable() ([]regionInfo, error) {
	if len(m.payload) < 8 {
		return nil, m.want(8)
	}
	n := binary.LittleEndian.Uint32(m.payload)
	if n > maxMessageFDs || int(n) != len(m.fds) {
		return nil, fmt.Errorf("%w: memory table of %d regions with %d descriptors", ErrProtocol, n, len(m.fds))
	}
	if need := 8 + int(n)*regionInfoSize; len(m.payload) < need {
		return nil, m.want(need)
	}
	infos := make([]regionInfo, n)
	for i := range infos {
		infos[i] = parseRegion(m.payload[8+i*regionInfoSize:])
	}
	return infos, nil
}

// memRegion parses padding and one region.
func (m *message) memRegion() (regionInfo, error) {
	if err := m.want(8 + regionInfoSize); err != nil {
		return regionInfo{}, err
	}
	return parseRegion(m.payload[8:]), nil
}

// inflightInfo is the payload of the in-flight messages: size u64, offset u64, queues u16, queue size u16.
type inflightInfo struct {
	size, offset      uint64
	queues, queueSize uint16
}

const inflightInfoSize = 20

func (m *message) inflight() (inflightInfo, error) {
	// Front-ends differ on whether the structure is padded to its alignment.
	if len(m.payload) != inflightInfoSize && len(m.payload) != inflightInfoSize+4 {
		return inflightInfo{}, m.want(inflightInfoSize)
	}
	p := m.payload
	return inflightInfo{
		size:      binary.LittleEndian.Uint64(p[0:]),
		offset:    binary.LittleEndian.Uint64(p[8:]),
		queues:    binary.LittleEndian.Uint16(p[16:]),
		queueSize: binary.LittleEndian.Uint16(p[18:]),
	}, nil
}

func (i inflightInfo) bytes(size int) []byte {
	b := make([]byte, size)
	binary.LittleEndian.PutUint64(b[0:], i.size)
	binary.LittleEndian.PutUint64(b[8:], i.offset)
	binary.LittleEndian.PutUint16(b[16:], i.queues)
	binary.LittleEndian.PutUint16(b[18:], i.queueSize)
	return b
}
