package fanotify

import (
	"encoding/binary"
	"errors"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// infoRec is one information record for record.
type infoRec struct {
	typ    uint8
	fsid   uint64
	htype  int32
	handle string
	name   string
	named  bool
}

func record(mask uint64, pid int32, infos ...infoRec) []byte {
	ne := binary.NativeEndian
	b := make([]byte, metadataLen)
	b[4] = unix.FANOTIFY_METADATA_VERSION
	ne.PutUint16(b[6:], metadataLen)
	ne.PutUint64(b[8:], mask)
	ne.PutUint32(b[16:], 0xffffffff) // FAN_NOFD
	ne.PutUint32(b[20:], uint32(pid))
	for _, in := range infos {
		at := len(b)
		b = append(b, in.typ, 0, 0, 0)
		b = ne.AppendUint32(b, uint32(in.fsid))
		b = ne.AppendUint32(b, uint32(in.fsid>>32))
		b = ne.AppendUint32(b, uint32(len(in.handle)))
		b = ne.AppendUint32(b, uint32(in.htype))
		b = append(b, in.handle...)
		if in.named {
			b = append(append(b, in.name...), 0)
		}
		for (len(b)-at)%4 != 0 {
			b = append(b, 0)
		}
		ne.PutUint16(b[at+2:], uint16(len(b)-at))
	}
	ne.PutUint32(b, uint32(len(b)))
	return b
}

var (
	dirRec = infoRec{typ: unix.FAN_EVENT_INFO_TYPE_DFID_NAME, fsid: 0x1122334455667788, htype: 1, handle: "dirhandle123", name: "file", named: true}
	fidRec = infoRec{typ: unix.FAN_EVENT_INFO_TYPE_FID, fsid: 0x1122334455667788, htype: 1, handle: "filehandle12"}
	oldRec = infoRec{typ: unix.FAN_EVENT_INFO_TYPE_OLD_DFID_NAME, fsid: 7, htype: 1, handle: "olddir", name: "a", named: true}
	newRec = infoRec{typ: unix.FAN_EVENT_INFO_TYPE_NEW_DFID_NAME, fsid: 7, htype: 1, handle: "newdir", name: "bb", named: true}
)

func (in infoRec) object() notify.Object {
	return notify.Object{FS: in.fsid, Type: in.htype, Handle: in.handle}
}

func TestLayout(t *testing.T) {
	var m unix.FanotifyEventMetadata
	if unsafe.Sizeof(m) != metadataLen || unsafe.Offsetof(m.Vers) != 4 || unsafe.Offsetof(m.Metadata_len) != 6 ||
		unsafe.Offsetof(m.Mask) != 8 || unsafe.Offsetof(m.Pid) != 20 {
		t.Error("fanotify_event_metadata is not laid out as the parser has it")
	}
}

func TestParse(t *testing.T) {
	self := dirRec
	self.name = "."
	unknown := infoRec{typ: 200, handle: "whatever"}
	invalid := infoRec{typ: unix.FAN_EVENT_INFO_TYPE_FID, htype: fileidInvalid}
	d, f := dirRec.object(), fidRec.object()
	for _, tc := range []struct {
		name string
		in   []byte
		want notify.Raw
	}{
		{"create", record(0x102, 12, dirRec, fidRec),
			notify.Raw{Mask: notify.Create | notify.Modify, Dir: d, Name: "file", Object: f, Pid: 12}},
		{"rename", record(0x10000000, 3, oldRec, newRec, fidRec),
			notify.Raw{Mask: notify.Rename, Dir: oldRec.object(), Name: "a", NewDir: newRec.object(), NewName: "bb", Object: f, Pid: 3}},
		{"moved out", record(0x10000000, 3, oldRec, fidRec),
			notify.Raw{Mask: notify.Rename, Dir: oldRec.object(), Name: "a", Object: f, Pid: 3}},
		{"moved in", record(0x10000000, 3, newRec, fidRec),
			notify.Raw{Mask: notify.Rename, NewDir: newRec.object(), NewName: "bb", Object: f, Pid: 3}},
		{"link count", record(4, 1, fidRec), notify.Raw{Mask: notify.Attrib, Object: f, Pid: 1}},
		{"directory itself", record(0x40000004, 1, self),
			notify.Raw{Mask: notify.Attrib | notify.IsDir, Dir: d, Name: ".", Object: d, Pid: 1}},
		{"overflow", record(0x4000, 0), notify.Raw{Mask: notify.QOverflow}},
		{"unknown info", record(4, 1, unknown, fidRec), notify.Raw{Mask: notify.Attrib, Object: f, Pid: 1}},
		{"no handle", record(4, 1, invalid), notify.Raw{Mask: notify.Attrib, Pid: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newParser()
			for range 2 { // the second time from the parser's memory
				got, rest, err := p.next(append(tc.in, "rest"...))
				if err != nil || got != tc.want || string(rest) != "rest" {
					t.Fatalf("got %+v, %q, %v; want %+v", got, rest, err, tc.want)
				}
			}
		})
	}
}

func TestParseMalformed(t *testing.T) {
	good := record(0x100, 1, dirRec, fidRec)
	for cut := 1; cut < len(good); cut++ {
		if _, _, err := newParser().next(good[:cut]); !errors.Is(err, errMalformed) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	for name, spoil := range map[string]func(b []byte){
		"version":       func(b []byte) { b[4] = 9 },
		"metadata_len":  func(b []byte) { b[6] = 0xff },
		"event_len":     func(b []byte) { binary.NativeEndian.PutUint32(b, 8) },
		"info len 0":    func(b []byte) { binary.NativeEndian.PutUint16(b[metadataLen+2:], 0) },
		"info len long": func(b []byte) { binary.NativeEndian.PutUint16(b[metadataLen+2:], 0xfff0) },
		"handle_bytes":  func(b []byte) { binary.NativeEndian.PutUint32(b[metadataLen+handleOff:], 0xffffffff) },
		"no NUL": func(b []byte) {
			end := metadataLen + int(binary.NativeEndian.Uint16(b[metadataLen+2:]))
			for i := metadataLen + fHandleOff + len(dirRec.handle); i < end; i++ {
				b[i] = 'x'
			}
		},
	} {
		b := append([]byte(nil), good...)
		spoil(b)
		if _, _, err := newParser().next(b); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseAllocates(t *testing.T) {
	p := newParser()
	b := record(0x100, 1, dirRec, fidRec)
	if n := testing.AllocsPerRun(100, func() { _, _, _ = p.next(b) }); n > 1 {
		t.Errorf("%v allocations a record, want the name's only", n)
	}
}

func TestInternedIsBounded(t *testing.T) {
	p := newParser()
	for i := range 2*maxInterned + 5 {
		rec := fidRec
		rec.handle = string(binary.NativeEndian.AppendUint64(nil, uint64(i)))
		r, _, err := p.next(record(4, 1, rec))
		if err != nil || r.Object != rec.object() {
			t.Fatalf("%d: %v, %v", i, r, err)
		}
	}
	if len(p.objects) > maxInterned {
		t.Errorf("%d handles remembered", len(p.objects))
	}
}

func TestBtrfsSubvolume(t *testing.T) {
	handle := func(root uint64) string {
		b := binary.NativeEndian.AppendUint64(nil, 257)
		b = binary.NativeEndian.AppendUint64(b, root)
		return string(binary.NativeEndian.AppendUint32(b, 7))
	}
	// f_fsid of one volume, as statfs(2) gave it for the top and for subvolume 256.
	const topFS, subFS = 0xae2ed65f8e132455, 0xae2ed75a8e132455
	top := notify.Object{FS: topFS, Type: btrfsFirstType, Handle: handle(5)}
	sub := notify.Object{FS: topFS, Type: btrfsFirstType, Handle: handle(256)}
	if got := btrfsSubvolume(sub, 5); got.FS != subFS {
		t.Errorf("subvolume's fsid %x, want %x", got.FS, uint64(subFS))
	}
	if got := btrfsSubvolume(top, 5); got != top {
		t.Errorf("the top became %v", got)
	}
	if coverKey(top) != coverKey(btrfsSubvolume(sub, 5)) {
		t.Error("two subvolumes of one volume have different cover keys")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(record(0x102, 12, dirRec, fidRec))
	f.Add(record(0x10000000, 3, oldRec, newRec, fidRec))
	f.Add(record(0x4000, 0))
	f.Add(append(record(4, 1, fidRec), record(0x200, 1, dirRec)...))
	f.Add([]byte{24, 0, 0, 0, 3, 0, 24, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		p := newParser()
		p.btrfsTop[dirRec.fsid] = 5
		for len(b) > 0 {
			r, rest, err := p.next(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) {
				t.Fatal("no progress")
			}
			if len(r.Name)+len(r.NewName)+len(r.Object.Handle) > len(b)-len(rest) {
				t.Fatal("more was read than the record holds")
			}
			b = rest
		}
	})
}
