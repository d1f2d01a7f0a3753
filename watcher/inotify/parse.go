package inotify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/heraldfs/heraldfs/notify"
)

// errMalformed says that the kernel's record is not laid out as we know it.
var errMalformed = errors.New("malformed inotify record")

// From include/uapi/linux/inotify.h:
//
//	struct inotify_event {
//		__s32 wd;
//		__u32 mask;
//		__u32 cookie;
//		__u32 len;
//		char  name[];	// padded with NULs to len
//	};
const eventLen = 16

// event is one record; name refers to the buffer.
type event struct {
	wd     int32
	mask   notify.Mask
	cookie uint32
	name   []byte
}

// next takes one record off buf, which must not be empty.
func next(buf []byte) (ev event, rest []byte, err error) {
	if len(buf) < eventLen {
		return ev, nil, fmt.Errorf("%w: %d bytes", errMalformed, len(buf))
	}
	ne := binary.NativeEndian
	n := uint64(ne.Uint32(buf[12:]))
	if n > uint64(len(buf)-eventLen) {
		return ev, nil, fmt.Errorf("%w: name of %d bytes in %d", errMalformed, n, len(buf))
	}
	ev.wd = int32(ne.Uint32(buf))
	ev.mask = notify.Mask(ne.Uint32(buf[4:]))
	ev.cookie = ne.Uint32(buf[8:])
	end := eventLen + int(n)
	ev.name = buf[eventLen:end]
	if i := bytes.IndexByte(ev.name, 0); i >= 0 {
		ev.name = ev.name[:i]
	}
	return ev, buf[end:], nil
}
