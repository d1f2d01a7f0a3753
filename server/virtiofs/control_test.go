package virtiofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, err := Listen(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Lstat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v", st.Mode(), err)
	}
	if _, err := Listen(path, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("second Listen: %v", err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if err := s.Serve(t.Context(), loopback(t.TempDir())); !errors.Is(err, notify.ErrClosed) {
		t.Errorf("Serve after Close: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
	// Another server's socket in the place of ours stays when we end.
	s, err = Listen(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := Listen(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the other's socket: %v", err)
	}
	other.Close()
	// What a dead process left.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	s, err = Listen(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, Options{}); !errors.Is(err, os.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
	for _, o := range []Options{{Tag: strings.Repeat("t", 37)}, {Queues: 256}, {Queues: -1}, {MaxWorkers: -1}} {
		if _, err := Listen(filepath.Join(t.TempDir(), "s"), o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}

func TestNegotiation(t *testing.T) {
	f := dial(t, startServer(t, Options{Tag: "share", Queues: 3}, loopback(t.TempDir())))
	u64 := func(request uint32) uint64 { return binary.LittleEndian.Uint64(f.ask(request, nil)) }
	if got := u64(reqGetFeatures); got != deviceFeatures {
		t.Errorf("features %#x", got)
	}
	if got := u64(reqGetProtocolFeatures); got&protocolConfig == 0 || got&(1<<1) != 0 {
		t.Errorf("protocol features %#x", got)
	}
	if got := u64(reqGetQueueNum); got != 4 {
		t.Errorf("%d queues", got)
	}
	if got := u64(reqGetMaxMemSlots); got != maxRegions {
		t.Errorf("%d memory slots", got)
	}
	f.must(reqSetStatus, u64s(0x0f))
	if got := u64(reqGetStatus); got != 0x0f {
		t.Errorf("status %#x", got)
	}
	// The whole configuration, a part of it, and what is not there.
	got := f.ask(reqGetConfig, append(u32s(0, 40, 0), make([]byte, 40)...))
	if len(got) != 52 || !bytes.Equal(got[12:17], []byte("share")) || binary.LittleEndian.Uint32(got[48:]) != 3 {
		t.Errorf("configuration % x", got)
	}
	if got := f.ask(reqGetConfig, append(u32s(36, 4, 0), make([]byte, 4)...)); len(got) != 16 || got[12] != 3 {
		t.Errorf("number of queues % x", got)
	}
	for _, r := range [][]byte{u32s(0, 257, 0), u32s(256, 1, 0), u32s(^uint32(0), 2, 0)} {
		if got := f.ask(reqGetConfig, r); len(got) != 0 {
			t.Errorf("configuration % x: % x", r, got)
		}
	}
}

// TestRefusals: what is refused is answered, if an answer is asked for, and the connection lives on.
func TestRefusals(t *testing.T) {
	f := dial(t, startServer(t, Options{}, loopback(t.TempDir())))
	f.setup(2, 0)
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	region := func(v ...uint64) []byte { return append(u64s(0), u64s(v...)...) }
	for _, c := range []struct {
		name    string
		request uint32
		payload []byte
		fds     []int
	}{
		{"dirty log", reqSetLogBase, u64s(0, 0), []int{f.fd}},
		{"unknown", 77, nil, nil},
		{"features", reqSetFeatures, u64s(1 << 63), nil},
		{"short features", reqSetFeatures, u32s(1), nil},
		{"protocol features", reqSetProtocolFeatures, u64s(1 << 40), nil},
		{"config", reqSetConfig, u32s(0, 0, 0), nil},
		{"queue", reqSetVringNum, u32s(99, 64), nil},
		{"started", reqSetVringNum, u32s(1, 64), nil},
		{"address", reqSetVringAddr, append(u32s(1, 0), u64s(1, 2, 3, 4)...), nil},
		{"odd address", reqSetVringAddr, append(u32s(1, 0), u64s(userBase+8, userBase+64, userBase, 0)...), nil},
		{"size", reqSetVringNum, u32s(3, 63), nil},
		{"zero size", reqSetVringNum, u32s(3, 0), nil},
		{"large size", reqSetVringNum, u32s(3, 65536), nil},
		{"base", reqSetVringBase, u32s(3, 65536), nil},
		{"kick before setup", reqSetVringKick, u64s(5), []int{f.qs[1].kick}},
		{"kick of a file", reqSetVringKick, u64s(5), []int{int(file.Fd())}},
		{"kick without descriptor", reqSetVringKick, u64s(5 | 0x100), nil},
		{"call without descriptor", reqSetVringCall, u64s(5), nil},
		{"call of no queue", reqSetVringCall, u64s(200), []int{f.qs[1].kick}},
		{"two descriptors", reqSetVringErr, u64s(5), []int{f.fd, f.fd}},
		{"table without descriptors", reqSetMemTable, f.memTable(), nil},
		{"short table", reqSetMemTable, u32s(1, 0), []int{f.fd}},
		{"table without the rings", reqSetMemTable, append(u32s(1, 0), u64s(0, 4096, 0, 0)...), []int{f.fd}},
		{"overlap", reqAddMemReg, region(4096, 4096, 0, 0), []int{f.fd}},
		{"beyond the file", reqAddMemReg, region(1<<32, 1<<32, 0, 0), []int{f.fd}},
		{"wrapping", reqAddMemReg, region(1<<32, 4096, 0, ^uint64(0)-10), []int{f.fd}},
		{"wrapping guest", reqAddMemReg, region(^uint64(0)-10, 4096, 0, 0), []int{f.fd}},
		{"empty", reqAddMemReg, region(1<<32, 0, 0, 0), []int{f.fd}},
		{"device", reqAddMemReg, region(1<<32, 4096, 0, 0), []int{int(null.Fd())}},
		{"not there", reqRemMemReg, region(1<<32, 4096, 0, 0), nil},
		{"inflight queues", reqSetInflightFD, inflightInfo{queues: 99, queueSize: 64}.bytes(20), []int{f.fd}},
	} {
		if v := f.tell(c.request, c.payload, c.fds...); v == 0 {
			t.Errorf("%s is accepted", c.name)
		}
		if c.name == "table without the rings" {
			f.must(reqSetMemTable, f.memTable(), f.fd)
		}
	}
	f.qs[1].initFuse()
	// Without a wish for an answer the connection is the answer.
	f.send(reqSetVringNum, 0, u32s(99, 64))
	f.closed()
}

func TestBadMessages(t *testing.T) {
	path := startServer(t, Options{}, loopback(t.TempDir()))
	for _, raw := range [][]byte{
		u32s(1, 2, 0),                  // version
		u32s(1, flagVersion|4, 0),      // a reply
		u32s(1, flagVersion, 1<<20),    // too long
		u32s(1, flagVersion)[:7],       // cut
		u32s(2, flagVersion, 8, 1)[:4], // cut
	} {
		f := dial(t, path)
		if _, err := f.conn.Write(raw); err != nil {
			t.Fatal(err)
		}
		f.conn.CloseWrite()
		f.closed()
		f.conn.Close()
	}
}

// TestMemorySlots: memory that is added one region at a time, and taken away under a started queue.
func TestMemorySlots(t *testing.T) {
	f := dial(t, startServer(t, Options{}, loopback(t.TempDir())))
	half := uint64(frontMemory / 2)
	low := append(u64s(0), u64s(0, half, userBase, 0)...)
	high := append(u64s(0), u64s(half, half, userBase+half, half)...)
	f.must(reqSetFeatures, u64s(featureProtocol|featureVersion1))
	f.must(reqAddMemReg, low, f.fd)
	f.must(reqAddMemReg, high, f.fd)
	q := &frontQueue{f: f, index: 1}
	for _, fd := range []*int{&q.kick, &q.call} {
		var err error
		if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			t.Fatal(err)
		}
	}
	f.qs = append(f.qs, q)
	q.start(0)
	q.initFuse()
	// A buffer across both.
	in := fuseRequest(3, 5, 1, make([]byte, 16))
	at := half - 20
	copy(f.mem[at:], in)
	q.setDesc(0, descriptor{addr: at, len: uint32(len(in)), flags: descNext, next: 1})
	q.setDesc(1, descriptor{addr: half - 50 + 1000 - 1000, len: 30, flags: descWrite | descNext, next: 2})
	q.setDesc(2, descriptor{addr: half + 4096, len: 128, flags: descWrite})
	q.publish(0)
	if _, n, ok := q.used(deadline); !ok || n != 16+104 {
		t.Fatalf("%d bytes, %v", n, ok)
	}
	f.must(reqRemMemReg, high)
	if v := f.tell(reqRemMemReg, high); v == 0 {
		t.Error("removed twice")
	}
	q.place(0, in, 128)
	q.initFuse()
}

// TestInflight is a back-end that dies with requests in hand, and the next one that finds them.
func TestInflight(t *testing.T) {
	f := dial(t, startServer(t, Options{}, loopback(t.TempDir())))
	f.send(reqGetInflightFD, 0, inflightInfo{queues: 2, queueSize: frontNum}.bytes(20))
	b, fds := f.receive(reqGetInflightFD)
	if len(fds) != 1 || len(b) != 20 {
		t.Fatalf("%d descriptors, % x", len(fds), b)
	}
	defer unix.Close(fds[0])
	info := inflightInfo{size: binary.LittleEndian.Uint64(b), queues: 2, queueSize: frontNum}
	if info.size != 2*(16+16*frontNum+48) {
		t.Errorf("%d bytes", info.size)
	}
	buf, err := mapInflight(info, fds[0])
	if err != nil {
		t.Fatal(err)
	}
	defer buf.unmap()
	// The first life: three are popped; the first was used, the second was used but not struck off.
	track := buf.queue(1, frontNum)
	if left := track.recover(0); len(left) != 0 {
		t.Fatalf("a new buffer has %v", left)
	}
	for _, head := range []uint16{6, 4, 2, 0} {
		track.begin(head)
	}
	track.finish(6)
	track.settle(6, 1)
	track.finish(4)
	f.setup(2, 0)
	q := f.qs[1]
	q.stop()
	f.qs[0].stop()
	f.must(reqSetInflightFD, info.bytes(20), fds[0])
	for i, head := range []uint16{6, 4, 2, 0} {
		q.place(int(head)/2, fuseRequest(3, uint64(head), 1, make([]byte, 16)), 128)
		binary.LittleEndian.PutUint16(q.ring.avail[4+2*i:], head)
	}
	q.ring.setUsedIdx(2)
	q.seen, q.avail = 2, 4
	store16(q.ring.avail, 2, 4)
	q.start(2)
	got := map[uint16]bool{}
	for range 2 {
		head, _, ok := q.used(deadline)
		if !ok {
			t.Fatal("a request is lost")
		}
		got[head] = true
	}
	if !got[2] || !got[0] {
		t.Errorf("heads %v", got)
	}
	if _, _, ok := q.used(50 * time.Millisecond); ok {
		t.Error("a request is done twice")
	}
	if base := q.stop(); base != 4 {
		t.Errorf("base %d", base)
	}
}

// starving is a listener of a process that is out of descriptors at times.
type starving struct {
	Listener
	n int
}

func (l *starving) AcceptUnix() (*net.UnixConn, error) {
	if l.n++; l.n%3 != 0 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", unix.EMFILE)}
	}
	return l.Listener.AcceptUnix()
}

// TestStarving: without descriptors for a while, the server serves afterwards.
func TestStarving(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(&starving{Listener: l}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(t.Context(), loopback(t.TempDir())) }()
	for range 2 {
		f := dial(t, path)
		if got := f.ask(reqGetFeatures, nil); len(got) != 8 {
			t.Errorf("features % x", got)
		}
		f.conn.Close()
	}
	s.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
