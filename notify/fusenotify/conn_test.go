package fusenotify

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
)

func TestSizes(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"fuse_out_header", unsafe.Sizeof(outHeader{}), outHeaderSize},
		{"fuse_notify_inval_inode_out", unsafe.Sizeof(invalInodeOut{}), 24},
		{"fuse_notify_inval_entry_out", unsafe.Sizeof(invalEntryOut{}), 16},
		{"fuse_notify_inval_entry_out.flags", unsafe.Offsetof(invalEntryOut{}.Flags), 12},
		{"fuse_notify_delete_out", unsafe.Sizeof(deleteOut{}), 24},
		{"fuse_notify_delete_out.namelen", unsafe.Offsetof(deleteOut{}.NameLen), 16},
		{"fuse_notify_store_out", unsafe.Sizeof(storeOut{}), 24},
		{"fuse_notify_store_out.size", unsafe.Offsetof(storeOut{}.Size), 16},
		{"fuse_notify_prune_out", unsafe.Sizeof(pruneOut{}), 16},
		{"fuse_notify_prune_out.spare", unsafe.Offsetof(pruneOut{}.Spare), 8},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d, want %d", c.name, c.got, c.want)
		}
	}
}

// The expected bytes are written for a little-endian machine.
func TestBytes(t *testing.T) {
	if one := uint16(1); *(*byte)(unsafe.Pointer(&one)) != 1 {
		testenv.Lack(t, "needs a little-endian machine")
	}
	const id = "8877665544332211"
	for _, c := range []struct {
		name string
		send func(*Conn) error
		want string
	}{
		{"inval inode", func(c *Conn) error { return c.InvalInode(0x1122334455667788, -1, 0x10) },
			"28000000 02000000 0000000000000000" + id + "ffffffffffffffff 1000000000000000"},
		{"inval entry, expire", func(c *Conn) error { return c.InvalEntry(0x1122334455667788, "ab", true) },
			"23000000 03000000 0000000000000000" + id + "02000000 01000000 616200"},
		{"inval entry", func(c *Conn) error { return c.InvalEntry(1, "\xff", false) },
			"22000000 03000000 0000000000000000 0100000000000000 01000000 00000000 ff00"},
		{"delete", func(c *Conn) error { return c.Delete(1, 0x1122334455667788, "x") },
			"2a000000 06000000 0000000000000000 0100000000000000" + id + "01000000 00000000 7800"},
		{"store", func(c *Conn) error { return c.Store(2, 0x1000, []byte("hi")) },
			"2a000000 04000000 0000000000000000 0200000000000000 0010000000000000 02000000 00000000 6869"},
		{"resend", (*Conn).Resend, "10000000 07000000 0000000000000000"},
		{"inc epoch", (*Conn).IncEpoch, "10000000 08000000 0000000000000000"},
		{"prune", func(c *Conn) error { return c.Prune(2, 0x1122334455667788) },
			"30000000 09000000 0000000000000000 02000000 00000000 0000000000000000 0200000000000000" + id},
	} {
		t.Run(c.name, func(t *testing.T) {
			want, err := hex.DecodeString(strings.ReplaceAll(c.want, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			conn := New(func(b []byte) error { got = bytes.Clone(b); return nil })
			if err := c.send(conn); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("got  %x\nwant %x", got, want)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	var errno error
	var calls int
	conn := New(func([]byte) error { calls++; return errno })

	errno = syscall.ENOENT
	if err := conn.InvalInode(1, 0, 0); !errors.Is(err, ErrNotCached) {
		t.Errorf("ENOENT: %v", err)
	}
	errno = &os.PathError{Op: "write", Err: syscall.ENOTEMPTY}
	if err := conn.Delete(1, 2, "d"); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("ENOTEMPTY: %v", err)
	}
	errno = syscall.EINVAL
	if err := conn.InvalInode(1, 0, 0); !errors.Is(err, syscall.EINVAL) || errors.Is(err, notify.ErrNotSupported) {
		t.Errorf("EINVAL of a code that every kernel has: %v", err)
	}
	for _, name := range []string{"", "a/b", "a\x00b"} {
		before := calls
		if err := conn.InvalEntry(1, name, true); !errors.Is(err, ErrBadName) || calls != before {
			t.Errorf("name %q: %v, %d writes", name, err, calls-before)
		}
	}

	if err := conn.IncEpoch(); !errors.Is(err, notify.ErrNotSupported) || !conn.Missing(CodeIncEpoch) {
		t.Errorf("EINVAL of a new code: %v", err)
	}
	if conn.Missing(CodePrune) {
		t.Error("PRUNE is missing because INC_EPOCH is")
	}
	errno = nil
	before := calls
	if err := conn.IncEpoch(); !errors.Is(err, notify.ErrNotSupported) || calls != before {
		t.Errorf("second try: %v, %d writes", err, calls-before)
	}
	errno = notify.ErrClosed
	if err := conn.InvalInode(1, 0, 0); !errors.Is(err, notify.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestPruneSplits(t *testing.T) {
	var counts []int
	conn := New(func(b []byte) error { counts = append(counts, (len(b)-32)/8); return nil })
	if err := conn.Prune(make([]uint64, maxPrune+3)...); err != nil {
		t.Fatal(err)
	}
	if len(counts) != 2 || counts[0] != maxPrune || counts[1] != 3 {
		t.Errorf("messages of %v ids", counts)
	}
}
