package protocol

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/vmihailenco/msgpack/v5"
	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// reader walks one msgpack value in memory. The scalars are msgpack's, the
// lengths are checked here.
type reader struct {
	buf []byte
	src bytes.Reader
	dec *msgpack.Decoder
	err error // the first; whatever is read after it is zero
}

func (r *reader) reset(buf []byte) {
	r.buf = buf
	r.err = nil
	r.src.Reset(buf)
	if r.dec == nil {
		r.dec = msgpack.NewDecoder(&r.src)
	}
	r.dec.ResetReader(&r.src)
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%s at byte %d: %w", what, len(r.buf)-r.src.Len(), ErrMalformed)
	}
}

// peek returns the next value's first byte, Nil after an error.
func (r *reader) peek() byte {
	if r.err != nil {
		return msgpcode.Nil
	}
	if r.src.Len() == 0 {
		r.fail("value missing")
		return msgpcode.Nil
	}
	return r.buf[len(r.buf)-r.src.Len()]
}

// take consumes n bytes and returns them; they are the frame's.
func (r *reader) take(n int) []byte {
	if r.err != nil {
		return nil
	}
	if n < 0 || n > r.src.Len() {
		r.fail("length beyond the frame")
		return nil
	}
	at := len(r.buf) - r.src.Len()
	_, _ = r.src.Seek(int64(n), 1)
	return r.buf[at : at+n]
}

func isMap(c byte) bool {
	return msgpcode.IsFixedMap(c) || c == msgpcode.Map16 || c == msgpcode.Map32
}

func isArray(c byte) bool {
	return msgpcode.IsFixedArray(c) || c == msgpcode.Array16 || c == msgpcode.Array32
}

// mapLen reads a map's header. Each entry has at least two bytes, so a
// claim beyond the frame is refused here.
func (r *reader) mapLen() int {
	if !isMap(r.peek()) {
		r.fail("map expected")
		return 0
	}
	n, err := r.dec.DecodeMapLen()
	if err != nil || n < 0 || n > r.src.Len()/2 {
		r.fail("map length")
		return 0
	}
	return n
}

// arrayLen reads an array's header; each element has at least one byte.
func (r *reader) arrayLen() int {
	if !isArray(r.peek()) {
		r.fail("array expected")
		return 0
	}
	n, err := r.dec.DecodeArrayLen()
	if err != nil || n < 0 || n > r.src.Len() {
		r.fail("array length")
		return 0
	}
	return n
}

// bytes reads a bin or a str of at most limit bytes; the result is the frame's.
func (r *reader) bytes(limit int) []byte {
	c := r.peek()
	if !msgpcode.IsBin(c) && !msgpcode.IsString(c) {
		r.fail("bytes expected")
		return nil
	}
	n, err := r.dec.DecodeBytesLen()
	if err != nil || n < 0 || n > limit {
		r.fail("bytes length")
		return nil
	}
	return r.take(n)
}

func (r *reader) text(limit int) string { return string(r.bytes(limit)) }

// same is text that allocates nothing if it equals old.
func (r *reader) same(limit int, old string) string {
	b := r.bytes(limit)
	if string(b) == old {
		return old
	}
	return string(b)
}

// fixed reads exactly n bytes, copied, or none.
func (r *reader) fixed(n int) []byte {
	b := r.bytes(n)
	if len(b) == 0 {
		return nil
	}
	if len(b) != n {
		r.fail("bytes of a fixed length expected")
		return nil
	}
	return bytes.Clone(b)
}

func isNumber(c byte) bool {
	return msgpcode.IsFixedNum(c) || c >= msgpcode.Uint8 && c <= msgpcode.Int64
}

func (r *reader) int() int64 {
	c := r.peek()
	if !isNumber(c) {
		r.fail("integer expected")
		return 0
	}
	n, err := r.dec.DecodeInt64()
	if err != nil || c == msgpcode.Uint64 && n < 0 {
		r.fail("integer out of range")
		return 0
	}
	return n
}

// uint reads an unsigned integer of at most limit.
func (r *reader) uint(limit uint64) uint64 {
	c := r.peek()
	if !isNumber(c) {
		r.fail("integer expected")
		return 0
	}
	if c != msgpcode.Uint64 {
		n := r.int()
		if n < 0 || uint64(n) > limit {
			r.fail("integer out of range")
			return 0
		}
		return uint64(n)
	}
	n, err := r.dec.DecodeUint64()
	if err != nil || n > limit {
		r.fail("integer out of range")
		return 0
	}
	return n
}

func (r *reader) bool() bool {
	switch r.peek() {
	case msgpcode.True:
		r.take(1)
		return true
	case msgpcode.False:
		r.take(1)
		return false
	}
	r.fail("boolean expected")
	return false
}

// null consumes a nil, if one is next.
func (r *reader) null() bool {
	if r.peek() != msgpcode.Nil || r.err != nil {
		return false
	}
	r.take(1)
	return true
}

// skip passes over one value of any type. It does not recurse: a frame full of nested
// arrays costs no more than any other.
func (r *reader) skip() {
	for left := 1; left > 0 && r.err == nil; left-- {
		switch c := r.peek(); {
		case isMap(c):
			left += 2 * r.mapLen()
		case isArray(c):
			left += r.arrayLen()
		case msgpcode.IsBin(c), msgpcode.IsString(c):
			r.bytes(len(r.buf))
		default:
			r.take(scalarLen(c, r.rest()))
		}
		if left-1 > r.src.Len() {
			r.fail("more elements than bytes")
		}
	}
}

func (r *reader) rest() []byte { return r.buf[len(r.buf)-r.src.Len():] }

// scalarLen is the length in bytes of a value that is neither map, array nor bytes, -1 if
// there is no such value.
func scalarLen(c byte, rest []byte) int {
	switch {
	case msgpcode.IsFixedNum(c), c == msgpcode.Nil, c == msgpcode.True, c == msgpcode.False:
		return 1
	}
	switch c {
	case msgpcode.Uint8, msgpcode.Int8:
		return 2
	case msgpcode.Uint16, msgpcode.Int16:
		return 3
	case msgpcode.Uint32, msgpcode.Int32, msgpcode.Float:
		return 5
	case msgpcode.Uint64, msgpcode.Int64, msgpcode.Double:
		return 9
	case msgpcode.FixExt1, msgpcode.FixExt2, msgpcode.FixExt4, msgpcode.FixExt8, msgpcode.FixExt16:
		return 2 + 1<<(c-msgpcode.FixExt1)
	}
	// ext 8, 16, 32: a length, a type byte, the data.
	switch {
	case c == msgpcode.Ext8 && len(rest) >= 2:
		return 3 + int(rest[1])
	case c == msgpcode.Ext16 && len(rest) >= 3:
		return 4 + int(binary.BigEndian.Uint16(rest[1:]))
	case c == msgpcode.Ext32 && len(rest) >= 5:
		return 6 + int(binary.BigEndian.Uint32(rest[1:]))
	}
	return -1
}

// writer builds one msgpack value in memory. Writing to a bytes.Buffer cannot fail,
// so the errors of msgpack's encoder are not looked at.
type writer struct {
	out bytes.Buffer
	enc *msgpack.Encoder
}

func (w *writer) encoder() *msgpack.Encoder {
	if w.enc == nil {
		w.enc = msgpack.NewEncoder(&w.out)
	}
	return w.enc
}

func (w *writer) mapLen(n int)   { _ = w.encoder().EncodeMapLen(n) }
func (w *writer) arrayLen(n int) { _ = w.encoder().EncodeArrayLen(n) }
func (w *writer) null()          { _ = w.enc.EncodeNil() }
func (w *writer) uint(n uint64)  { _ = w.enc.EncodeUint(n) }
func (w *writer) int(n int64)    { _ = w.enc.EncodeInt(n) }

// key writes a field's name as a str.
func (w *writer) key(k string) { _ = w.enc.EncodeString(k) }

// bin writes a bin without converting s.
func (w *writer) bin(s string) {
	_ = w.enc.EncodeBytesLen(len(s))
	w.out.WriteString(s)
}

func (w *writer) keyUint(k string, n uint64) { w.key(k); w.uint(n) }
func (w *writer) keyBin(k, s string)         { w.key(k); w.bin(s) }
func (w *writer) keyBool(k string, b bool)   { w.key(k); _ = w.enc.EncodeBool(b) }

func (w *writer) keyBins(k string, list []string) {
	w.key(k)
	w.arrayLen(len(list))
	for _, s := range list {
		w.bin(s)
	}
}
