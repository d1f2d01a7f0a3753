package virtiofs

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// deadline bounds every wait of these tests.
const deadline = 20 * time.Second

// front is a VMM and its guest's driver: it talks vhost-user to a Server and
// drives split virtqueues in a memfd. Guest physical address 0 is offset 0, and the
// front-end's addresses are userBase above.
type front struct {
	t    testing.TB
	conn *net.UnixConn
	fd   int
	mem  []byte
	qs   []*frontQueue
}

const (
	frontMemory = 8 << 20
	userBase    = 0x7f0000000000
	// Each queue has 64 KiB: rings in the first half, buffers behind all queues.
	queueArea  = 64 << 10
	bufferArea = 1 << 20
	frontNum   = 64
)

type frontQueue struct {
	f          *front
	index      int
	kick, call int
	ring       vring
	avail      uint16
	seen       uint16
	flags      uint64
}

func startServer(t testing.TB, o Options, newFS NewFS) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	s, err := Listen(path, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, newFS) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(deadline):
			t.Error("Serve does not end")
		}
		s.Close()
	})
	return path
}

// dial connects a VMM without any set-up.
func dial(t testing.TB, path string) *front {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, frontMemory); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, frontMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	f := &front{t: t, conn: c.(*net.UnixConn), fd: fd, mem: mem}
	t.Cleanup(func() {
		f.conn.Close()
		for _, q := range f.qs {
			unix.Close(q.kick)
			unix.Close(q.call)
		}
		unix.Munmap(mem)
		unix.Close(fd)
	})
	return f
}

func u32s(v ...uint32) []byte {
	var b []byte
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, x)
	}
	return b
}

func u64s(v ...uint64) []byte {
	var b []byte
	for _, x := range v {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return b
}

func (f *front) send(request, flags uint32, payload []byte, fds ...int) {
	f.t.Helper()
	b := append(u32s(request, flags|flagVersion, uint32(len(payload))), payload...)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := f.conn.WriteMsgUnix(b, oob, nil); err != nil {
		f.t.Fatalf("request %d: %v", request, err)
	}
}

func (f *front) receive(request uint32) ([]byte, []int) {
	f.t.Helper()
	f.conn.SetReadDeadline(time.Now().Add(deadline))
	var head [headerSize]byte
	oob := make([]byte, 64)
	n, oobn, _, _, err := f.conn.ReadMsgUnix(head[:], oob)
	if err != nil || n != headerSize {
		f.t.Fatalf("reply to %d: %d bytes, %v", request, n, err)
	}
	if got := binary.LittleEndian.Uint32(head[:]); got != request || head[4] != flagVersion|flagReply {
		f.t.Fatalf("reply to %d is for %d, flags %#x", request, got, head[4])
	}
	b := make([]byte, binary.LittleEndian.Uint32(head[8:]))
	if _, err := io.ReadFull(f.conn, b); err != nil {
		f.t.Fatal(err)
	}
	fds, _ := parseRights(oob[:oobn], nil)
	return b, fds
}

// ask sends a request that has a reply of its own.
func (f *front) ask(request uint32, payload []byte) []byte {
	f.t.Helper()
	f.send(request, 0, payload)
	b, _ := f.receive(request)
	return b
}

// tell sends a request and returns the acknowledgement.
func (f *front) tell(request uint32, payload []byte, fds ...int) uint64 {
	f.t.Helper()
	f.send(request, flagNeedReply, payload, fds...)
	b, _ := f.receive(request)
	return binary.LittleEndian.Uint64(b)
}

func (f *front) must(request uint32, payload []byte, fds ...int) {
	f.t.Helper()
	if v := f.tell(request, payload, fds...); v != 0 {
		f.t.Fatalf("request %d was refused", request)
	}
}

// closed fails the test unless the server ends the connection.
func (f *front) closed() {
	f.t.Helper()
	f.conn.SetReadDeadline(time.Now().Add(deadline))
	if _, err := f.conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		f.t.Fatalf("the connection is not closed: %v", err)
	}
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

func (f *front) memTable() []byte {
	return append(u32s(1, 0), u64s(0, frontMemory, userBase, 0)...)
}

// setup negotiates and starts n queues.
func (f *front) setup(n int, features uint64) {
	f.t.Helper()
	f.ask(reqGetFeatures, nil)
	f.ask(reqGetProtocolFeatures, nil)
	f.must(reqSetProtocolFeatures, u64s(protocolMQ|protocolReplyAck))
	f.must(reqSetOwner, nil)
	f.must(reqSetFeatures, u64s(features|featureProtocol|featureVersion1))
	f.must(reqSetMemTable, f.memTable(), f.fd)
	for i := range n {
		q := &frontQueue{f: f, index: i, flags: features}
		for _, fd := range []*int{&q.kick, &q.call} {
			var err error
			if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
				f.t.Fatal(err)
			}
		}
		f.qs = append(f.qs, q)
		q.start(0)
	}
}

func (q *frontQueue) area() uint64 { return uint64(q.index) * queueArea }

// start sets the queue up as a driver does after a reset, or with base goes on.
func (q *frontQueue) start(base uint16) {
	f, a := q.f, q.area()
	f.t.Helper()
	addr := vringAddr{desc: userBase + a, avail: userBase + a + 0x2000, used: userBase + a + 0x4000}
	if base == 0 {
		clear(f.mem[a : a+0x8000])
		q.avail, q.seen = 0, 0
	}
	q.ring = vring{num: frontNum, desc: f.mem[a:][:frontNum*16], avail: f.mem[a+0x2000:][:frontNum*2+6], used: f.mem[a+0x4000:][:frontNum*8+6]}
	i := uint32(q.index)
	f.must(reqSetVringNum, u32s(i, frontNum))
	f.must(reqSetVringBase, u32s(i, uint32(base)))
	f.must(reqSetVringAddr, append(u32s(i, 0), u64s(addr.desc, addr.used, addr.avail, 0)...))
	f.must(reqSetVringCall, u64s(uint64(i)), q.call)
	f.must(reqSetVringKick, u64s(uint64(i)), q.kick)
	f.must(reqSetVringEnable, u32s(i, 1))
}

// stop is GET_VRING_BASE.
func (q *frontQueue) stop() uint16 {
	q.f.t.Helper()
	b := q.f.ask(reqGetVringBase, u32s(uint32(q.index), 0))
	return uint16(binary.LittleEndian.Uint32(b[4:]))
}

func (q *frontQueue) setDesc(i int, d descriptor) {
	b := q.ring.desc[i*16:]
	binary.LittleEndian.PutUint64(b, d.addr)
	binary.LittleEndian.PutUint32(b[8:], d.len)
	binary.LittleEndian.PutUint16(b[12:], d.flags)
	binary.LittleEndian.PutUint16(b[14:], d.next)
}

// publish makes head available, and kicks if asked to.
func (q *frontQueue) publish(head uint16) {
	old := q.avail
	binary.LittleEndian.PutUint16(q.ring.avail[4+2*(uint32(old)%frontNum):], head)
	q.avail++
	store16(q.ring.avail, 2, q.avail)
	want := load16(q.ring.used, 0)&usedNoNotify == 0
	if q.flags&featureEventIdx != 0 {
		want = load16(q.ring.used, 4+8*frontNum) == old
	}
	if want {
		signal(q.kick)
	}
}

// used waits for the next used element; ok is false when the time is up.
func (q *frontQueue) used(limit time.Duration) (head uint16, n uint32, ok bool) {
	end := time.Now().Add(limit)
	for q.ring.usedIdx() == q.seen {
		if q.flags&featureEventIdx != 0 {
			store16(q.ring.avail, 4+2*frontNum, q.seen)
			if q.ring.usedIdx() != q.seen {
				break
			}
		}
		left := time.Until(end)
		if left <= 0 {
			return 0, 0, false
		}
		fds := []unix.PollFd{{Fd: int32(q.call), Events: unix.POLLIN}}
		unix.Poll(fds, int(left/time.Millisecond)+1)
		var b [8]byte
		unix.Read(q.call, b[:])
	}
	off := 4 + 8*(uint32(q.seen)%frontNum)
	head = uint16(binary.LittleEndian.Uint32(q.ring.used[off:]))
	n = binary.LittleEndian.Uint32(q.ring.used[off+4:])
	q.seen++
	return head, n, true
}

// place puts a request of in and room for outLen bytes into slot (two descriptors and 256 KiB each).
func (q *frontQueue) place(slot int, in []byte, outLen int) uint16 {
	at := uint64(bufferArea + slot*256<<10)
	copy(q.f.mem[at:], in)
	d := descriptor{addr: at, len: uint32(len(in))}
	if outLen > 0 {
		d.flags, d.next = descNext, uint16(2*slot+1)
		q.setDesc(2*slot+1, descriptor{addr: at + 128<<10, len: uint32(outLen), flags: descWrite})
	}
	q.setDesc(2*slot, d)
	return uint16(2 * slot)
}

func (q *frontQueue) reply(slot int, n uint32) []byte {
	at := bufferArea + slot*256<<10 + 128<<10
	return bytes.Clone(q.f.mem[at : at+int(n)])
}

// fuse makes a FUSE request.
func fuseRequest(opcode uint32, unique, node uint64, body ...[]byte) []byte {
	b := make([]byte, inHeaderSize)
	for _, p := range body {
		b = append(b, p...)
	}
	binary.LittleEndian.PutUint32(b[0:], uint32(len(b)))
	binary.LittleEndian.PutUint32(b[4:], opcode)
	binary.LittleEndian.PutUint64(b[8:], unique)
	binary.LittleEndian.PutUint64(b[16:], node)
	return b
}

// call performs one request and returns its error and the data behind the header.
func (q *frontQueue) call1(slot int, in []byte, outLen int) (errno unix.Errno, data []byte) {
	q.f.t.Helper()
	q.publish(q.place(slot, in, outLen))
	head, n, ok := q.used(deadline)
	if !ok {
		q.f.t.Fatalf("no answer to opcode %d", binary.LittleEndian.Uint32(in[4:]))
	}
	if int(head) != 2*slot {
		q.f.t.Fatalf("answer to head %d, want %d", head, 2*slot)
	}
	return decodeReply(q.f.t, in, q.reply(slot, n))
}

func decodeReply(t testing.TB, in, b []byte) (unix.Errno, []byte) {
	t.Helper()
	if len(b) < outHeaderSize || int(binary.LittleEndian.Uint32(b)) != len(b) {
		t.Fatalf("opcode %d: reply % x", binary.LittleEndian.Uint32(in[4:]), b)
	}
	if !bytes.Equal(b[8:16], in[8:16]) {
		t.Fatalf("reply to %x for %x", b[8:16], in[8:16])
	}
	return unix.Errno(-int32(binary.LittleEndian.Uint32(b[4:]))), b[outHeaderSize:]
}

// initFuse sends INIT as Linux 6.12 does.
func (q *frontQueue) initFuse() {
	q.f.t.Helper()
	body := make([]byte, 64)
	copy(body, u32s(7, 41, 131072, 0xffffffff&^(1<<30)))
	errno, data := q.call1(0, fuseRequest(opInit, 1, 0, body), 128)
	if errno != 0 || len(data) != 64 || data[0] != 7 {
		q.f.t.Fatalf("INIT: %v % x", errno, data)
	}
}

func writeFile(t testing.TB, path string, size int) {
	t.Helper()
	if err := os.WriteFile(path, bytes.Repeat([]byte{'x'}, size), 0o644); err != nil {
		t.Fatal(err)
	}
}
