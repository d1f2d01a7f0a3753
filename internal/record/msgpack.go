package record

import (
	"encoding/binary"
	"math"
	"time"
	"unicode/utf8"

	"github.com/heraldfs/heraldfs/watcher/tree"
)

// msgpack writes one map for each record, with the keys of jsonLines.
type msgpack struct{ names *namer }

func (m *msgpack) append(dst []byte, seq uint64, r *tree.Record) []byte {
	at := len(dst)
	dst = append(dst, 0x80) // fixmap; its size is filled in at the end
	size := 0
	key := func(k string) {
		size++
		dst = mpString(dst, k)
	}
	key("seq")
	dst = mpUint(dst, seq)
	key("time")
	dst = mpTime(dst, r.Time)
	key("type")
	dst = mpString(dst, r.Type.String())
	if r.Path != "" {
		key("path")
		dst = mpString(dst, r.Path)
		if m.names.many && r.Type != tree.TypeReady {
			key("root")
			dst = mpString(dst, m.names.roots[r.Root].Arg)
		}
	}
	if r.OldPath != "" {
		key("old_path")
		dst = mpString(dst, r.OldPath)
		if m.names.many {
			key("old_root")
			dst = mpString(dst, m.names.roots[r.OldRoot].Arg)
		}
	}
	if r.Cookie != 0 {
		key("cookie")
		dst = mpUint(dst, uint64(r.Cookie))
	}
	key("is_dir")
	if r.IsDir {
		dst = append(dst, 0xc3)
	} else {
		dst = append(dst, 0xc2)
	}
	if r.Pid != 0 {
		key("pid")
		dst = mpUint(dst, uint64(r.Pid))
	}
	if r.Origin != "" {
		key("origin")
		dst = mpString(dst, r.Origin)
	}
	dst[at] |= byte(size)
	return dst
}

// mpString writes a str, or a bin if s is not UTF-8.
func mpString(dst []byte, s string) []byte {
	n := len(s)
	text := utf8.ValidString(s)
	switch {
	case text && n < 32:
		dst = append(dst, 0xa0|byte(n))
	case n <= math.MaxUint8:
		dst = append(dst, pick(text, 0xd9, 0xc4), byte(n))
	case n <= math.MaxUint16:
		dst = binary.BigEndian.AppendUint16(append(dst, pick(text, 0xda, 0xc5)), uint16(n))
	default:
		dst = binary.BigEndian.AppendUint32(append(dst, pick(text, 0xdb, 0xc6)), uint32(n))
	}
	return append(dst, s...)
}

func pick(text bool, str, bin byte) byte {
	if text {
		return str
	}
	return bin
}

func mpUint(dst []byte, v uint64) []byte {
	switch {
	case v < 128:
		return append(dst, byte(v))
	case v <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, 0xce), uint32(v))
	}
	return binary.BigEndian.AppendUint64(append(dst, 0xcf), v)
}

// mpTime writes the extension type -1 in its 64-bit form, which reaches to the year 2514.
func mpTime(dst []byte, t time.Time) []byte {
	dst = append(dst, 0xd7, 0xff)
	return binary.BigEndian.AppendUint64(dst, uint64(t.Nanosecond())<<34|uint64(t.Unix())&(1<<34-1))
}
