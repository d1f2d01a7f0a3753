package virtiofs

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/server/passthrough"
)

// panics counts log records that tell of a panic.
type panics struct{ n atomic.Int32 }

func (p *panics) Enabled(context.Context, slog.Level) bool { return true }
func (p *panics) WithAttrs([]slog.Attr) slog.Handler       { return p }
func (p *panics) WithGroup(string) slog.Handler            { return p }
func (p *panics) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "panic") && p.n.Add(1) == 1 {
		r.Attrs(func(a slog.Attr) bool {
			fmt.Fprintln(os.Stderr, r.Message, a)
			return true
		})
	}
	return nil
}

// TestHostileGuest sends requests that no kernel would: wild numbers, names that point out of the share,
// bodies that are cut. The back-end lives, and what is beside the share stays as it was.
func TestHostileGuest(t *testing.T) {
	testenv.Need(t, testenv.Root)
	top := t.TempDir()
	// Not to fill a real disk.
	if err := unix.Mount("none", top, "tmpfs", 0, "size=32m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(top, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	share := filepath.Join(top, "share")
	if err := os.MkdirAll(filepath.Join(share, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(share, "file"), 100)
	writeFile(t, filepath.Join(top, "secret"), 100)
	for _, l := range []string{"../secret", "..", "/"} {
		if err := os.Symlink(l, filepath.Join(share, fmt.Sprint("link", len(l)))); err != nil {
			t.Fatal(err)
		}
	}
	before := snapshot(t, top)
	log := &panics{}
	path := startServer(t, Options{Logger: slog.New(log)}, func(Guest) (fuse.RawFileSystem, *fuse.MountOptions, error) {
		fs, err := passthrough.New(share, passthrough.Options{ForeignPids: true})
		if err != nil {
			return nil, nil, err
		}
		o := fs.MountOptions()
		return closeFS{fs}, &o, nil
	})
	f := dial(t, path)
	f.setup(2, featureEventIdx)
	q := f.qs[1]
	q.initFuse()
	r := rand.New(rand.NewPCG(1, 2))
	const batch = 8
	done := 0
	for range 2500 {
		for slot := range batch {
			q.publish(q.place(slot, hostileRequest(r), r.IntN(3)*r.IntN(70000)))
		}
		for range batch {
			head, n, ok := q.used(deadline)
			if !ok {
				t.Fatal("no answer")
			}
			if b := q.reply(int(head)/2, n); len(b) >= outHeaderSize && binary.LittleEndian.Uint32(b[4:]) == 0 {
				done++
			}
		}
	}
	t.Logf("%d requests were carried out", done)
	if done < 500 {
		t.Error("hardly any request got anywhere")
	}
	q.initFuse()
	if errno, _ := q.call1(0, fuseRequest(3, 9, 1, make([]byte, 16)), 128); errno != 0 {
		t.Errorf("GETATTR after all: %v", errno)
	}
	if n := log.n.Load(); n != 0 {
		t.Errorf("%d panics", n)
	}
	if after := snapshot(t, top); after != before {
		t.Errorf("beside the share: %s, was %s", after, before)
	}
	f.conn.Close()
}

type closeFS struct{ *passthrough.FS }

func (c closeFS) OnUnmount() { c.FS.Close() }

// snapshot is what a guest must not change: everything in top but the inside of the share.
func snapshot(t *testing.T, top string) string {
	t.Helper()
	entries, err := os.ReadDir(top)
	if err != nil {
		t.Fatal(err)
	}
	s := ""
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(top, e.Name()), &st); err != nil {
			t.Fatal(err)
		}
		s += fmt.Sprintf("%s %d;", e.Name(), st.Ino)
		if e.Name() == "secret" {
			s += fmt.Sprintf("%o %d %d %d;", st.Mode, st.Uid, st.Nlink, st.Mtim.Nano())
		}
	}
	return s
}

var hostileNames = []string{"..", ".", "", "/", "../secret", "dir/../../secret", "/etc/passwd", "link9", "link2", "link1", "file",
	"dir", "new", "other", strings.Repeat("n", 255), strings.Repeat("n", 256), "user.x", "system.posix_acl_access", "security.capability", "\xff\xfe"}

// hostileRequest looks like a request often enough to get somewhere.
func hostileRequest(r *rand.Rand) []byte {
	opcode := uint32(r.IntN(55))
	for opcode == opSetLkw || opcode == opInit || opcode == opDestroy {
		opcode = uint32(r.IntN(55))
	}
	number := func() uint64 {
		switch r.IntN(6) {
		case 0:
			return r.Uint64()
		case 1:
			return ^uint64(r.IntN(3))
		case 2:
			return 1 << r.IntN(64)
		}
		return uint64(r.IntN(12))
	}
	var body []byte
	if int(opcode) < len(fixedSize) {
		for len(body) < int(fixedSize[opcode]) {
			body = binary.LittleEndian.AppendUint64(body, number())
		}
		body = body[:fixedSize[opcode]]
	}
	for range r.IntN(3) {
		body = append(body, hostileNames[r.IntN(len(hostileNames))]...)
		if r.IntN(8) > 0 {
			body = append(body, 0)
		}
	}
	if r.IntN(20) == 0 {
		body = body[:r.IntN(len(body)+1)]
	}
	node := number()
	if r.IntN(2) == 0 {
		node = uint64(1 + r.IntN(6))
	}
	in := fuseRequest(opcode, r.Uint64(), node, body)
	binary.LittleEndian.PutUint32(in[24:], uint32(r.IntN(2)*1000))
	binary.LittleEndian.PutUint32(in[28:], uint32(r.IntN(2)*1000))
	if r.IntN(50) == 0 {
		binary.LittleEndian.PutUint16(in[36:], uint16(number())) // total_extlen
	}
	return in
}

// TestForged: a guest that names what it was not told of, or what lies outside, gets errors and nothing else.
func TestForged(t *testing.T) {
	testenv.Need(t, testenv.Root)
	top := t.TempDir()
	share := filepath.Join(top, "share")
	if err := os.MkdirAll(filepath.Join(share, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(top, "secret"), 100)
	if err := os.Symlink("/etc/passwd", filepath.Join(share, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../secret", filepath.Join(share, "up")); err != nil {
		t.Fatal(err)
	}
	f := dial(t, startServer(t, Options{}, func(Guest) (fuse.RawFileSystem, *fuse.MountOptions, error) {
		fs, err := passthrough.New(share, passthrough.Options{ForeignPids: true})
		if err != nil {
			return nil, nil, err
		}
		o := fs.MountOptions()
		return closeFS{fs}, &o, nil
	}))
	f.setup(2, featureEventIdx)
	q := f.qs[1]
	q.initFuse()
	name := func(s string) []byte { return append([]byte(s), 0) }
	const lookupOp, readlinkOp, openOp, opendirOp = 1, 5, 14, 27
	dir, link, up := lookup(t, q, "dir"), lookup(t, q, "link"), lookup(t, q, "up")
	for _, outside := range []string{"..", ".", "", "/", "/etc/passwd", "../secret", "dir/../../secret", "link/", "..\x00x"} {
		for _, node := range []uint64{1, dir} {
			if errno, data := q.call1(0, fuseRequest(lookupOp, 9, node, name(outside)), 256); errno == 0 && outside != "..\x00x" {
				t.Errorf("LOOKUP %d %q: % x", node, outside, data)
			} else if errno == 0 {
				t.Errorf("a name is cut at its NUL: % x", data)
			}
		}
	}
	// Links are text: they are not followed, neither as a file nor as a directory.
	for _, l := range []uint64{link, up} {
		for _, op := range []uint32{openOp, opendirOp} {
			if errno, _ := q.call1(0, fuseRequest(op, 9, l, u32s(unix.O_RDONLY, 0)), 256); errno == 0 {
				t.Errorf("opcode %d opens a link", op)
			}
		}
		if errno, data := q.call1(0, fuseRequest(lookupOp, 9, l, name("passwd")), 256); errno == 0 {
			t.Errorf("LOOKUP through a link: % x", data)
		}
	}
	if errno, text := q.call1(0, fuseRequest(readlinkOp, 9, link), 256); errno != 0 || string(text) != "/etc/passwd" {
		t.Errorf("READLINK: %v %q", errno, text)
	}
	// Not ^0: go-fuse answers for that itself, with an empty file that is nowhere.
	for _, node := range []uint64{0, up + 1, 1 << 32, 1 << 63, ^uint64(1)} {
		for _, c := range []struct {
			op   uint32
			body []byte
		}{{lookupOp, name("secret")}, {3, make([]byte, 16)}, {openOp, u32s(unix.O_RDONLY, 0)}, {opendirOp, u32s(0, 0)}, {readlinkOp, nil}} {
			if errno, data := q.call1(0, fuseRequest(c.op, 9, node, c.body), 256); errno == 0 {
				t.Errorf("opcode %d of the forged node %d: % x", c.op, node, data)
			}
		}
	}
	// File handles of nobody, and of another node.
	for _, fh := range []uint64{0, 1, 77, ^uint64(0)} {
		if errno, data := q.call1(0, fuseRequest(opRead, 9, 1, u64s(fh, 0), u32s(100, 0), u64s(0, 0)), 256); errno == 0 {
			t.Errorf("READ of handle %d: % x", fh, data)
		}
	}
}
