package fanotify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// errMalformed says that the kernel's record is not laid out as we know it.
var errMalformed = errors.New("malformed fanotify record")

// Sizes and offsets, from include/uapi/linux/fanotify.h:
//
//	struct fanotify_event_metadata {
//		__u32 event_len;
//		__u8 vers;
//		__u8 reserved;
//		__u16 metadata_len;
//		__aligned_u64 mask;
//		__s32 fd;
//		__s32 pid;
//	};
//	struct fanotify_event_info_header {
//		__u8 info_type;
//		__u8 pad;
//		__u16 len;
//	};
//	struct fanotify_event_info_fid {
//		struct fanotify_event_info_header hdr;
//		__kernel_fsid_t fsid;
//		unsigned char handle[];   // struct file_handle, then for the NAME types the name and a NUL
//	};
//	struct file_handle {
//		__u32 handle_bytes;
//		int handle_type;
//		unsigned char f_handle[];
//	};
const (
	metadataLen = 24
	infoHdrLen  = 4
	fsidOff     = infoHdrLen
	handleOff   = fsidOff + 8
	fHandleOff  = handleOff + 8

	// fileidInvalid is FILEID_INVALID of include/linux/exportfs.h: no handle could be made.
	fileidInvalid = 0xff
)

// maxInterned bounds the parser's memory of handles.
const maxInterned = 32 << 10

// parser turns records into Raws. Handles repeat, so it remembers the Objects
// that it made, and an event costs the allocation of its name only.
type parser struct {
	objects map[string]notify.Object
	// btrfsTop has, for each fsid of a filesystem mark on btrfs, the id of the subvolume
	// that this fsid belongs to.
	btrfsTop map[uint64]uint64
}

func newParser() *parser {
	return &parser{objects: make(map[string]notify.Object), btrfsTop: make(map[uint64]uint64)}
}

// next takes one record off buf, which must not be empty.
func (p *parser) next(buf []byte) (r notify.Raw, rest []byte, err error) {
	if len(buf) < metadataLen {
		return r, nil, fmt.Errorf("%w: %d bytes", errMalformed, len(buf))
	}
	ne := binary.NativeEndian
	evLen, mdLen := uint64(ne.Uint32(buf)), uint64(ne.Uint16(buf[6:]))
	if buf[4] != unix.FANOTIFY_METADATA_VERSION {
		return r, nil, fmt.Errorf("%w: version %d", errMalformed, buf[4])
	}
	if mdLen < metadataLen || evLen < mdLen || evLen > uint64(len(buf)) {
		return r, nil, fmt.Errorf("%w: length %d of %d", errMalformed, evLen, len(buf))
	}
	r.Mask = notify.Mask(ne.Uint64(buf[8:]))
	r.Pid = int32(ne.Uint32(buf[20:]))
	info := buf[mdLen:evLen]
	for len(info) > 0 {
		if len(info) < infoHdrLen {
			return r, nil, fmt.Errorf("%w: %d bytes of info", errMalformed, len(info))
		}
		n := uint64(ne.Uint16(info[2:]))
		if n < infoHdrLen || n > uint64(len(info)) {
			return r, nil, fmt.Errorf("%w: info length %d of %d", errMalformed, n, len(info))
		}
		if err := p.info(&r, info[:n]); err != nil {
			return r, nil, err
		}
		info = info[n:]
	}
	return r, buf[evLen:], nil
}

// info reads one information record; types that we do not know are skipped.
func (p *parser) info(r *notify.Raw, b []byte) error {
	switch typ := b[0]; typ {
	case unix.FAN_EVENT_INFO_TYPE_FID:
		o, _, err := p.fid(b)
		if err != nil {
			return err
		}
		r.Object = o
	case unix.FAN_EVENT_INFO_TYPE_DFID, unix.FAN_EVENT_INFO_TYPE_DFID_NAME,
		unix.FAN_EVENT_INFO_TYPE_OLD_DFID_NAME, unix.FAN_EVENT_INFO_TYPE_NEW_DFID_NAME:
		o, rest, err := p.fid(b)
		if err != nil {
			return err
		}
		name := ""
		if typ != unix.FAN_EVENT_INFO_TYPE_DFID {
			end := bytes.IndexByte(rest, 0)
			if end < 0 {
				return fmt.Errorf("%w: name without end", errMalformed)
			}
			name = string(rest[:end])
		}
		if typ == unix.FAN_EVENT_INFO_TYPE_NEW_DFID_NAME {
			r.NewDir, r.NewName = o, name
			break
		}
		r.Dir, r.Name = o, name
		if name == "." {
			r.Object = o
		}
	}
	return nil
}

// fid reads the file system id and the handle and returns what follows them.
func (p *parser) fid(b []byte) (notify.Object, []byte, error) {
	if len(b) < fHandleOff {
		return notify.Object{}, nil, fmt.Errorf("%w: %d bytes of fid", errMalformed, len(b))
	}
	n := uint64(binary.NativeEndian.Uint32(b[handleOff:]))
	if n > uint64(len(b)-fHandleOff) {
		return notify.Object{}, nil, fmt.Errorf("%w: handle of %d bytes", errMalformed, n)
	}
	end := fHandleOff + int(n)
	return p.object(b[fsidOff:end]), b[end:], nil
}

// object interns fsid, handle_bytes, handle_type and f_handle.
func (p *parser) object(b []byte) notify.Object {
	if o, ok := p.objects[string(b)]; ok {
		return o
	}
	ne := binary.NativeEndian
	o := notify.Object{
		FS:     uint64(ne.Uint32(b)) | uint64(ne.Uint32(b[4:]))<<32,
		Type:   int32(ne.Uint32(b[12:])),
		Handle: string(b[16:]),
	}
	if o.Type == fileidInvalid || o.Handle == "" {
		return notify.Object{}
	}
	if top, ok := p.btrfsTop[o.FS]; ok {
		o = btrfsSubvolume(o, top)
	}
	if len(p.objects) >= maxInterned {
		clear(p.objects)
	}
	p.objects[string(b)] = o
	return o
}
