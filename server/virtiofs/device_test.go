package virtiofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// loopback is a NewFS for dir.
func loopback(dir string) NewFS {
	return func(g Guest) (fuse.RawFileSystem, *fuse.MountOptions, error) {
		root, err := fs.NewLoopbackRoot(dir)
		if err != nil {
			return nil, nil, err
		}
		return fs.NewNodeFS(root, &fs.Options{}), &fuse.MountOptions{MaxWrite: 1 << 20}, nil
	}
}

func testFeatures(t *testing.T, f func(t *testing.T, features uint64)) {
	for name, features := range map[string]uint64{"plain": 0, "event_idx": featureEventIdx} {
		t.Run(name, func(t *testing.T) { f(t, features) })
	}
}

func TestReadWrite(t *testing.T) {
	testFeatures(t, func(t *testing.T, features uint64) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte("hello"), 0o644); err != nil {
			t.Fatal(err)
		}
		f := dial(t, startServer(t, Options{}, loopback(dir)))
		f.setup(3, features)
		q := f.qs[1]
		q.initFuse()
		node := lookup(t, q, "f")
		errno, data := q.call1(0, fuseRequest(14, 3, node, u32s(unix.O_RDWR, 0)), 256)
		if errno != 0 {
			t.Fatal(errno)
		}
		fh := binary.LittleEndian.Uint64(data)
		errno, data = q.call1(0, fuseRequest(opRead, 4, node, u64s(fh, 0), u32s(4096, 0), u64s(0, 0)), 4096+16)
		if errno != 0 || string(data) != "hello" {
			t.Fatalf("read: %v %q", errno, data)
		}
		want := bytes.Repeat([]byte("0123456789abcdef"), 6000)
		in := fuseRequest(opWrite, 5, node, u64s(fh, 0), u32s(uint32(len(want)), 0), u64s(0, 0), want)
		// The data in pieces, as the guest's pages are.
		q.place(0, in, 64)
		const cut1, cut2 = 80, 80 + 50000
		at := uint64(bufferArea)
		q.setDesc(0, descriptor{addr: at, len: cut1, flags: descNext, next: 2})
		q.setDesc(2, descriptor{addr: at + cut1, len: cut2 - cut1, flags: descNext, next: 3})
		q.setDesc(3, descriptor{addr: at + cut2, len: uint32(len(in)) - cut2, flags: descNext, next: 1})
		q.publish(0)
		_, n, ok := q.used(deadline)
		if !ok {
			t.Fatal("no answer to WRITE")
		}
		if errno, _ := decodeReply(t, in, q.reply(0, n)); errno != 0 {
			t.Fatal(errno)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes on the host, %v", len(got), err)
		}
		// FORGET on the hiprio queue has no reply.
		h := f.qs[0]
		h.publish(h.place(1, fuseRequest(opForget, 6, node, u64s(1)), 0))
		if head, n, ok := h.used(deadline); !ok || head != 2 || n != 0 {
			t.Fatalf("FORGET: head %d, %d bytes, %v", head, n, ok)
		}
	})
}

func lookup(t testing.TB, q *frontQueue, name string) uint64 {
	t.Helper()
	errno, data := q.call1(0, fuseRequest(1, 2, 1, []byte(name+"\x00")), 256)
	if errno != 0 || len(data) < 8 {
		t.Fatalf("LOOKUP %s: %v", name, errno)
	}
	return binary.LittleEndian.Uint64(data)
}

func TestIndirectAndManyAtOnce(t *testing.T) {
	testFeatures(t, func(t *testing.T, features uint64) {
		f := dial(t, startServer(t, Options{}, loopback(t.TempDir())))
		f.setup(2, features|featureIndirect)
		q := f.qs[1]
		q.initFuse()
		for round := range 200 {
			const batch = 16
			for slot := range batch {
				at := uint64(bufferArea + slot*256<<10)
				in := fuseRequest(3, uint64(round*batch+slot+10), 1, make([]byte, 16))
				copy(f.mem[at:], in)
				table := f.mem[at+64<<10:]
				put := func(i int, d descriptor) {
					binary.LittleEndian.PutUint64(table[16*i:], d.addr)
					binary.LittleEndian.PutUint32(table[16*i+8:], d.len)
					binary.LittleEndian.PutUint16(table[16*i+12:], d.flags)
					binary.LittleEndian.PutUint16(table[16*i+14:], d.next)
				}
				put(0, descriptor{addr: at, len: uint32(len(in)), flags: descNext, next: 1})
				put(1, descriptor{addr: at + 128<<10, len: 16 + 104, flags: descWrite})
				q.setDesc(2*slot, descriptor{addr: at + 64<<10, len: 32, flags: descIndirect})
				q.publish(uint16(2 * slot))
			}
			seen := map[uint16]bool{}
			for range batch {
				head, n, ok := q.used(deadline)
				if !ok || seen[head] || n != 16+104 {
					t.Fatalf("round %d: head %d, %d bytes, %v", round, head, n, ok)
				}
				seen[head] = true
			}
		}
	})
}

// TestReset is a guest that is reset without DESTROY, then one that pauses.
func TestReset(t *testing.T) {
	dir := t.TempDir()
	var made, gone atomic.Int32
	path := startServer(t, Options{}, func(g Guest) (fuse.RawFileSystem, *fuse.MountOptions, error) {
		made.Add(1)
		raw, o, err := loopback(dir)(g)
		return &countUnmount{raw, &gone}, o, err
	})
	f := dial(t, path)
	f.setup(2, 0)
	q := f.qs[1]
	if errno, _ := q.call1(0, fuseRequest(3, 9, 1, make([]byte, 16)), 128); errno != unix.ENOTCONN {
		t.Errorf("GETATTR before INIT: %v", errno)
	}
	q.initFuse()
	if base := q.stop(); base != 2 {
		t.Errorf("base %d after two requests", base)
	}
	f.qs[0].stop()
	// A pause: the session goes on.
	q.start(2)
	if errno, _ := q.call1(0, fuseRequest(3, 9, 1, make([]byte, 16)), 128); errno != 0 || made.Load() != 1 {
		t.Errorf("GETATTR after a pause: %v; %d sessions", errno, made.Load())
	}
	q.stop()
	q.start(0)
	q.initFuse()
	if made.Load() != 2 || gone.Load() != 1 {
		t.Errorf("%d sessions made, %d ended", made.Load(), gone.Load())
	}
	if errno, _ := q.call1(0, fuseRequest(opDestroy, 9, 0), 16); errno != 0 || gone.Load() != 2 {
		t.Errorf("DESTROY: %v, %d ended", errno, gone.Load())
	}
	q.initFuse()
	f.must(reqResetDevice, nil)
	if gone.Load() != 3 {
		t.Errorf("RESET_DEVICE: %d ended", gone.Load())
	}
}

type countUnmount struct {
	fuse.RawFileSystem
	n *atomic.Int32
}

func (c *countUnmount) OnUnmount() { c.n.Add(1); c.RawFileSystem.OnUnmount() }

// TestReconnect is a VMM that goes without a word, with a handler stuck, and another one that comes.
func TestReconnect(t *testing.T) {
	dir := t.TempDir()
	stuck := &stuckFS{entered: make(chan struct{}, 8)}
	gone := make(chan error, 2)
	path := startServer(t, Options{OnDisconnect: func(err error) { gone <- err }}, func(g Guest) (fuse.RawFileSystem, *fuse.MountOptions, error) {
		raw, o, err := loopback(dir)(g)
		return &stuckFS{RawFileSystem: raw, entered: stuck.entered}, o, err
	})
	for range 2 {
		f := dial(t, path)
		f.setup(2, 0)
		q := f.qs[1]
		q.initFuse()
		q.publish(q.place(1, fuseRequest(34, 7, 1, u32s(4, 0)), 16))
		wait(t, stuck.entered)
		// The stuck handler does not keep others waiting.
		if errno, _ := q.call1(0, fuseRequest(3, 9, 1, make([]byte, 16)), 128); errno != 0 {
			t.Error(errno)
		}
		f.conn.Close()
		if err := wait(t, gone); err != nil {
			t.Error(err)
		}
	}
}

// stuckFS blocks ACCESS, a quick request, until it is cancelled.
type stuckFS struct {
	fuse.RawFileSystem
	entered chan struct{}
}

func (s *stuckFS) Access(cancel <-chan struct{}, _ *fuse.AccessIn) fuse.Status {
	s.entered <- struct{}{}
	<-cancel
	return fuse.EINTR
}

func wait[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(deadline):
		t.Fatal("timeout")
		panic("unreachable")
	}
}

// TestVringBaseQuiesces: a stopped queue has given back everything.
func TestVringBaseQuiesces(t *testing.T) {
	entered := make(chan struct{}, 8)
	f := dial(t, startServer(t, Options{}, func(g Guest) (fuse.RawFileSystem, *fuse.MountOptions, error) {
		raw, o, err := loopback(t.TempDir())(g)
		return &stuckFS{raw, entered}, o, err
	}))
	f.setup(2, 0)
	q := f.qs[1]
	q.initFuse()
	for slot := 1; slot < 5; slot++ {
		q.publish(q.place(slot, fuseRequest(34, uint64(slot), 1, u32s(4, 0)), 16))
		wait(t, entered)
	}
	if base := q.stop(); base != 5 || q.ring.usedIdx() != 5 {
		t.Fatalf("base %d, used %d, want 5", base, q.ring.usedIdx())
	}
	// What is published while stopped is served after the start.
	q.seen = 5
	q.publish(q.place(6, fuseRequest(3, 9, 1, make([]byte, 16)), 128))
	if _, _, ok := q.used(50 * time.Millisecond); ok {
		t.Fatal("a stopped queue answered")
	}
	q.start(5)
	if head, _, ok := q.used(deadline); !ok || head != 12 {
		t.Fatalf("head %d, %v", head, ok)
	}
}

// TestBrokenGuest: each way to break the rules stops the device, and a reset heals it.
func TestBrokenGuest(t *testing.T) {
	errs := make(chan error, 16)
	f := dial(t, startServer(t, Options{OnError: func(err error) { errs <- err }}, loopback(t.TempDir())))
	f.setup(2, 0)
	errfd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(errfd)
	f.must(reqSetVringErr, u64s(1), errfd)
	q := f.qs[1]
	ok := descriptor{addr: bufferArea, len: 64}
	for _, c := range []struct {
		name string
		head uint16
		jump uint16
		desc []descriptor
	}{
		{name: "head", head: frontNum},
		{name: "too many", jump: frontNum + 1},
		{name: "loop", desc: []descriptor{{addr: bufferArea, len: 1, flags: descNext, next: 0}}},
		{name: "next", desc: []descriptor{{addr: bufferArea, len: 1, flags: descNext, next: frontNum}}},
		{name: "address", desc: []descriptor{{addr: frontMemory - 10, len: 64}}},
		{name: "wrap", desc: []descriptor{{addr: ^uint64(0) - 10, len: 64}}},
		{name: "length", desc: []descriptor{{addr: 0, len: ^uint32(0)}}},
		{name: "sum", desc: []descriptor{{addr: 0, len: 1 << 20, flags: descNext, next: 1}, {addr: 0, len: 1 << 20}}},
		{name: "order", desc: []descriptor{{addr: bufferArea, len: 64, flags: descWrite | descNext, next: 1}, ok}},
		{name: "short", desc: []descriptor{{addr: bufferArea, len: 39}}},
		{name: "indirect length", desc: []descriptor{{addr: bufferArea, len: 17, flags: descIndirect}}},
		{name: "indirect size", desc: []descriptor{{addr: bufferArea, len: 16 * 1025, flags: descIndirect}}},
		{name: "indirect next", desc: []descriptor{{addr: bufferArea, len: 16, flags: descIndirect | descNext, next: 1}, ok}},
		{name: "indirect twice", desc: []descriptor{{addr: bufferArea + 1, len: 16, flags: descIndirect}}},
		{name: "indirect address", desc: []descriptor{{addr: frontMemory, len: 16, flags: descIndirect}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.t, q.f.t = t, t
			// The table at bufferArea+1 is an indirect descriptor itself.
			binary.LittleEndian.PutUint16(f.mem[bufferArea+1+12:], descIndirect)
			for i, d := range c.desc {
				q.setDesc(i, d)
			}
			q.avail += c.jump
			q.publish(c.head)
			if err := wait(t, errs); !errors.Is(err, ErrGuest) {
				t.Errorf("error %v", err)
			}
			var b [8]byte
			if _, err := unix.Read(errfd, b[:]); err != nil {
				t.Errorf("error event: %v", err)
			}
			f.qs[0].stop()
			q.stop()
			f.qs[0].start(0)
			q.start(0)
			q.initFuse()
		})
	}
}

func TestHeadTwice(t *testing.T) {
	errs := make(chan error, 1)
	entered := make(chan struct{}, 8)
	f := dial(t, startServer(t, Options{OnError: func(err error) { errs <- err }}, func(g Guest) (fuse.RawFileSystem, *fuse.MountOptions, error) {
		raw, o, err := loopback(t.TempDir())(g)
		return &stuckFS{raw, entered}, o, err
	}))
	f.setup(2, 0)
	q := f.qs[1]
	q.initFuse()
	head := q.place(1, fuseRequest(34, 7, 1, u32s(4, 0)), 16)
	q.publish(head)
	wait(t, entered)
	q.publish(head)
	if err := wait(t, errs); !errors.Is(err, ErrGuest) {
		t.Error(err)
	}
}

// TestTruncatedMemory: the front-end takes the memory away; we must live.
func TestTruncatedMemory(t *testing.T) {
	errs := make(chan error, 1)
	path := startServer(t, Options{OnError: func(err error) { errs <- err }}, loopback(t.TempDir()))
	f := dial(t, path)
	f.setup(2, 0)
	q := f.qs[1]
	q.initFuse()
	if err := unix.Ftruncate(f.fd, 0); err != nil {
		t.Fatal(err)
	}
	signal(q.kick)
	if err := wait(t, errs); !errors.Is(err, ErrMemory) {
		t.Error(err)
	}
	q.stop()
	f.conn.Close()
	f = dial(t, path)
	f.setup(2, 0)
	f.qs[1].initFuse()
}

// TestTruncatedBuffers: the rings are there, the data is not.
func TestTruncatedBuffers(t *testing.T) {
	errs := make(chan error, 1)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "f"), 8192)
	f := dial(t, startServer(t, Options{OnError: func(err error) { errs <- err }}, loopback(dir)))
	f.setup(2, 0)
	q := f.qs[1]
	q.initFuse()
	q.place(0, fuseRequest(3, 9, 1, make([]byte, 16)), 128)
	if err := unix.Ftruncate(f.fd, bufferArea); err != nil {
		t.Fatal(err)
	}
	q.publish(0)
	if err := wait(t, errs); !errors.Is(err, ErrMemory) {
		t.Error(err)
	}
}

func TestOldKernel(t *testing.T) {
	f := dial(t, startServer(t, Options{}, loopback(t.TempDir())))
	f.setup(2, 0)
	q := f.qs[1]
	for _, version := range [][]byte{u32s(6, 41), u32s(7, 11), u32s(8, 0)} {
		if errno, _ := q.call1(0, fuseRequest(opInit, 1, 0, version, make([]byte, 56)), 128); errno != unix.EPROTO {
			t.Errorf("version %v: %v", version, errno)
		}
	}
	if errno, _ := q.call1(0, fuseRequest(opRead, 1, 0), 128); errno != unix.EINVAL {
		t.Errorf("cut READ: %v", errno)
	}
	q.initFuse()
}

// TestLocksDoNotStarve: waiting locks take neither the workers nor the queue.
func TestLocksDoNotStarve(t *testing.T) {
	entered := make(chan struct{}, 8)
	f := dial(t, startServer(t, Options{MaxWorkers: 1}, func(g Guest) (fuse.RawFileSystem, *fuse.MountOptions, error) {
		raw, o, err := loopback(t.TempDir())(g)
		return &stuckFS{raw, entered}, o, err
	}))
	f.setup(2, 0)
	q := f.qs[1]
	q.initFuse()
	lock := fuseRequest(opSetLkw, 7, 1, make([]byte, 48))
	q.publish(q.place(1, lock, 16))
	wait(t, entered)
	if errno, _ := q.call1(2, lock, 16); errno != unix.ENOLCK {
		t.Errorf("one lock too many: %v", errno)
	}
	if errno, _ := q.call1(2, fuseRequest(opFsync, 8, 1, make([]byte, 16)), 16); errno == unix.ENOLCK {
		t.Error("FSYNC is no lock")
	}
}

func (s *stuckFS) SetLkw(cancel <-chan struct{}, _ *fuse.LkIn) fuse.Status {
	return s.Access(cancel, nil)
}

// TestRingMoves: SET_VRING_ADDR for a started queue that waits for a kick.
func TestRingMoves(t *testing.T) {
	testFeatures(t, func(t *testing.T, features uint64) {
		f := dial(t, startServer(t, Options{}, loopback(t.TempDir())))
		f.setup(2, features)
		q := f.qs[1]
		q.initFuse()
		const from, to = queueArea, 8 * queueArea
		copy(f.mem[to:], f.mem[from:from+queueArea])
		clear(f.mem[from : from+queueArea])
		f.must(reqSetVringAddr, append(u32s(1, 0), u64s(userBase+to, userBase+to+0x4000, userBase+to+0x2000, 0)...))
		q.ring = vring{num: frontNum, desc: f.mem[to:][:frontNum*16], avail: f.mem[to+0x2000:][:frontNum*2+6], used: f.mem[to+0x4000:][:frontNum*8+6]}
		for range 3 {
			if errno, _ := q.call1(0, fuseRequest(3, 9, 1, make([]byte, 16)), 128); errno != 0 {
				t.Fatal(errno)
			}
		}
	})
}
