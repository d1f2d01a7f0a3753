package virtiofs

import (
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkGetattr is one request at a time: kick, carry out, call.
func BenchmarkGetattr(b *testing.B) {
	f := dial(b, startServer(b, Options{}, loopback(b.TempDir())))
	f.setup(2, featureEventIdx)
	q := f.qs[1]
	q.initFuse()
	in := fuseRequest(3, 9, 1, make([]byte, 16))
	for b.Loop() {
		if errno, _ := q.call1(0, in, 120); errno != 0 {
			b.Fatal(errno)
		}
	}
}

// BenchmarkRead is 128 KiB of a file at a time, into the guest's memory.
func BenchmarkRead(b *testing.B) {
	dir := b.TempDir()
	const size = 120 << 10
	writeFile(b, dir+"/f", size)
	f := dial(b, startServer(b, Options{}, loopback(dir)))
	f.setup(2, featureEventIdx)
	q := f.qs[1]
	q.initFuse()
	node := lookup(b, q, "f")
	errno, data := q.call1(0, fuseRequest(14, 3, node, u32s(unix.O_RDONLY, 0)), 256)
	if errno != 0 {
		b.Fatal(errno)
	}
	in := fuseRequest(opRead, 4, node, data[:8], u64s(0), u32s(size, 0), u64s(0, 0))
	b.SetBytes(size)
	for b.Loop() {
		q.publish(q.place(0, in, size+16))
		if _, n, ok := q.used(deadline); !ok || n != size+16 {
			b.Fatal(n, ok)
		}
	}
}
