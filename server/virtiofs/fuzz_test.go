package virtiofs

import (
	"encoding/binary"
	"io"
	"log"
	"log/slog"
	"net"
	"os"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// emptyFS answers everything with ENOSYS and says nothing: what is tried is the way to it.
func emptyFS(Guest) (fuse.RawFileSystem, *fuse.MountOptions, error) {
	return fuse.NewDefaultRawFileSystem(), &fuse.MountOptions{Logger: log.New(io.Discard, "", 0)}, nil
}

func fuzzMemory(t testing.TB, size int64) (fd int) {
	fd, err := unix.MemfdCreate("fuzz", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	return fd
}

// FuzzControl feeds a byte stream with descriptors of a memfd to a connection's parser and device.
func FuzzControl(f *testing.F) {
	msg := func(request uint32, payload []byte) []byte {
		return append(u32s(request, flagVersion|flagNeedReply, uint32(len(payload))), payload...)
	}
	var set []byte
	for _, m := range [][]byte{
		msg(reqSetMemTable, append(u32s(1, 0), u64s(0, 1<<16, 0, 0)...)), msg(reqSetVringNum, u32s(1, 8)),
		msg(reqSetVringAddr, append(u32s(1, 0), u64s(0, 0x1000, 0x2000, 0)...)), msg(reqSetVringCall, u64s(1)),
		msg(reqSetVringKick, u64s(1)), msg(reqSetVringEnable, u32s(1, 1)), msg(reqGetVringBase, u32s(1, 0)),
	} {
		set = append(set, m...)
	}
	f.Add(set)
	f.Add(msg(reqGetConfig, u32s(0, 40, 0)))
	f.Add(msg(reqGetInflightFD, inflightInfo{queues: 2, queueSize: 16}.bytes(24)))
	f.Add(append(msg(reqAddMemReg, u64s(0, 0, 4096, 0, 0)), msg(reqRemMemReg, u64s(0, 0, 4096, 0, 0))...))
	f.Fuzz(func(t *testing.T, stream []byte) {
		d := newDevice(&Options{Tag: "t", Queues: 2, MaxWorkers: 4, Logger: slog.New(slog.DiscardHandler)}, emptyFS)
		defer d.close()
		memfd := fuzzMemory(t, 1<<16)
		for len(stream) >= headerSize {
			m := &message{}
			size, err := m.parseHeader(stream)
			if err != nil {
				return
			}
			stream = stream[headerSize:]
			m.payload = stream[:min(int(size), len(stream))]
			stream = stream[len(m.payload):]
			switch m.request {
			case reqSetMemTable, reqAddMemReg, reqSetInflightFD:
				m.fds = []int{mustDup(t, memfd)}
			case reqSetVringKick, reqSetVringCall, reqSetVringErr:
				fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
				if err != nil {
					t.Fatal(err)
				}
				m.fds = []int{fd}
			}
			r, _ := d.control(m)
			m.close()
			if r != nil && r.fd >= 0 {
				unix.Close(r.fd)
			}
		}
	})
}

func mustDup(t *testing.T, fd int) int {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// FuzzWalk gives the walker tables that a hostile guest has written. Whatever it
// returns lies in the region, and in the bounds.
func FuzzWalk(f *testing.F) {
	seed := func(ds ...descriptor) []byte {
		var b []byte
		for _, d := range ds {
			b = append(b, u64s(d.addr)...)
			b = append(b, u32s(d.len, uint32(d.flags)|uint32(d.next)<<16)...)
		}
		return b
	}
	f.Add(uint16(0), seed(descriptor{0x1000, 40, descNext, 1}, descriptor{0x2000, 80, descWrite, 0}))
	f.Add(uint16(0), seed(descriptor{0x1000, 40, descNext, 0}))
	f.Add(uint16(1), seed(descriptor{}, descriptor{0, 32, descIndirect, 0}))
	f.Add(uint16(0), seed(descriptor{0xfff0, 32, 0, 0}))
	const size = 1 << 16
	fd := fuzzMemory(f, size)
	f.Fuzz(func(t *testing.T, head uint16, table []byte) {
		low, err := mapRegion(regionInfo{gpa: 0, size: size / 2}, fd)
		if err != nil {
			t.Fatal(err)
		}
		high, err := mapRegion(regionInfo{gpa: size / 2, size: size / 2, uva: size / 2, offset: size / 2}, fd)
		if err != nil {
			t.Fatal(err)
		}
		m := newMemory([]*region{low, high})
		defer m.release()
		clear(low.data)
		copy(low.data, table)
		ring, err := resolveRing(m, vringAddr{desc: 0, avail: 0x2000, used: 0x3000}, 64)
		if err != nil {
			t.Fatal(err)
		}
		c, err := ring.walk(m, head)
		if err != nil {
			return
		}
		for _, list := range []struct {
			parts [][]byte
			n     int
		}{{c.in, c.inLen}, {c.out, c.outLen}} {
			sum := 0
			for _, p := range list.parts {
				sum += len(p)
				for i := range p {
					_ = p[i]
				}
			}
			if sum != list.n || sum > maxBytes || len(list.parts) > maxParts {
				t.Fatalf("%d bytes in %d parts, want %d", sum, len(list.parts), list.n)
			}
		}
	})
}

// FuzzRequest sends what a guest may put into a chain, after a proper INIT, through
// the whole device.
func FuzzRequest(f *testing.F) {
	f.Add(fuseRequest(1, 1, 1, []byte("name\x00")), uint16(256))
	f.Add(fuseRequest(opRead, 1, 1, make([]byte, 40)), uint16(4096))
	f.Add(fuseRequest(opWrite, 1, 1, make([]byte, 80)), uint16(24))
	f.Add(fuseRequest(opBatchForget, 1, 0, u32s(5, 0)), uint16(0))
	f.Add(fuseRequest(12, 1, 1, u64s(1), []byte("a\x00b")), uint16(16))
	f.Add(fuseRequest(21, 1, 1, u32s(4, 0), []byte("user.a\x00v")), uint16(16))
	f.Add(fuseRequest(39, 1, 1, make([]byte, 32)), uint16(64))
	f.Add(fuseRequest(opInit, 1, 1, u32s(7, 41, 0, 0)), uint16(80))
	f.Add(fuseRequest(44, 1, 1, u64s(1, 2), u32s(1<<31, 0), u64s(0, 0)), uint16(100))
	f.Fuzz(func(t *testing.T, in []byte, outLen uint16) {
		d := newDevice(&Options{Queues: 1, MaxWorkers: 4, Logger: slog.New(slog.DiscardHandler)}, emptyFS)
		defer d.close()
		s, err := newSession(emptyFS, Guest{}, d.log)
		if err != nil {
			t.Fatal(err)
		}
		d.swapSession(s)
		for _, cut := range []int{len(in), 1, 40, 80, 100} {
			out := make([]byte, outLen)
			r := &request{q: d.queues[1]}
			r.in, r.inLen = split(in, cut), len(in)
			r.out, r.outLen = split(out, cut), len(out)
			if r.header, err = r.readHeader(); err != nil {
				return
			}
			r.blocks()
			n, err := d.answer(r)
			if err != nil || n < 0 || n > len(out) {
				t.Fatalf("%d bytes of %d, %v", n, len(out), err)
			}
			if n >= outHeaderSize && int(binary.LittleEndian.Uint32(out)) != n {
				t.Fatalf("reply of %d bytes says % x", n, out[:outHeaderSize])
			}
		}
	})
}

func split(b []byte, at int) [][]byte {
	at = min(at, len(b))
	return [][]byte{b[:at:at], b[at:]}
}

// TestDescriptorsAreClosed: what the front-end sends along without being asked is not kept.
func TestDescriptorsAreClosed(t *testing.T) {
	a, b := socketPair(t)
	defer a.Close()
	defer b.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	raw := append(u32s(reqGetFeatures, flagVersion, 0), 0)
	if _, _, err := a.WriteMsgUnix(raw[:headerSize], unix.UnixRights(int(w.Fd()), int(w.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	w.Close()
	m, err := readMessage(b)
	if err != nil || len(m.fds) != 2 {
		t.Fatalf("%v, %v", m, err)
	}
	m.close()
	if n, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the pipe is still open: %d, %v", n, err)
	}
}

func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
	}
	return conns[0], conns[1]
}
