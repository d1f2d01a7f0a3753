package protocol

import (
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/heraldfs/heraldfs/notify"
)

// Decoder reads frames. It is not safe for concurrent use.
type Decoder struct {
	src io.Reader
	max int
	buf []byte
	hdr [headerSize]byte
	r   reader
	// dir is the directory that was decoded last: neighbours mostly share it.
	dir string
}

// NewDecoder returns a Decoder that refuses frames of more than max bytes; 0 is
// MaxFrame. It reads no byte beyond the frame that it returns.
func NewDecoder(r io.Reader, max int) *Decoder {
	if max <= 0 || max > MaxFrame {
		max = MaxFrame
	}
	return &Decoder{src: r, max: max}
}

// readChunk is how much memory a claimed frame length gets before its bytes arrive.
const readChunk = 16 << 10

// Decode reads the next message whose type is known. It returns io.EOF at the end of a
// whole frame and io.ErrUnexpectedEOF inside one. The message is the caller's; its
// strings are copies.
func (d *Decoder) Decode() (Message, error) {
	for {
		payload, err := d.frame()
		if err != nil {
			return nil, err
		}
		m, err := d.message(payload)
		if err != nil || m != nil {
			return m, err
		}
	}
}

func (d *Decoder) frame() ([]byte, error) {
	if _, err := io.ReadFull(d.src, d.hdr[:]); err != nil {
		return nil, err
	}
	n := int(d.hdr[0])<<24 | int(d.hdr[1])<<16 | int(d.hdr[2])<<8 | int(d.hdr[3])
	if n <= 0 || n > d.max {
		return nil, fmt.Errorf("frame of %d bytes, at most %d: %w", uint32(n), d.max, ErrFrameTooBig)
	}
	// The buffer grows with what has arrived, not with what was announced.
	got := 0
	for got < n {
		want := min(n, max(2*got, readChunk, cap(d.buf)))
		if cap(d.buf) < want {
			d.buf = append(make([]byte, 0, want), d.buf[:got]...)
		}
		k, err := io.ReadFull(d.src, d.buf[got:want])
		got += k
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		d.buf = d.buf[:got]
	}
	return d.buf[:n], nil
}

// DecodeMessage decodes a frame's payload; nil without an error is a message of an unknown
// type.
func DecodeMessage(payload []byte) (Message, error) {
	var d Decoder
	return d.message(payload)
}

// DecodeEvent decodes what AppendEvent made. Its operation may be an unknown one.
func DecodeEvent(raw []byte) (Event, error) {
	var d Decoder
	d.r.reset(raw)
	var ev Event
	d.event(&ev)
	return ev, d.end()
}

func (d *Decoder) end() error {
	if d.r.err == nil && d.r.src.Len() > 0 {
		d.r.fail("bytes after the end")
	}
	return d.r.err
}

func (d *Decoder) message(payload []byte) (Message, error) {
	r := &d.r
	r.reset(payload)
	if n := r.arrayLen(); n != 2 {
		r.fail("array of two expected")
		return nil, r.err
	}
	t := r.uint(math.MaxUint64)
	if t == 0 || t > uint64(TypeHail) {
		r.skip()
		return nil, d.end()
	}
	m := d.body(Type(t))
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("message of type %d: %w", t, err)
	}
	return m, nil
}

// fields calls f with each field's name; f must consume the value, or return false to
// have it skipped.
func (r *reader) fields(f func(key string) bool) {
	for n := r.mapLen(); n > 0 && r.err == nil; n-- {
		key := r.bytes(len(r.buf))
		if r.err == nil && !f(string(key)) {
			r.skip()
		}
	}
}

func (d *Decoder) body(t Type) Message {
	r := &d.r
	switch t {
	case TypeHello:
		return d.hello()
	case TypeSubscribe:
		return d.subscribe()
	case TypeSubscribed:
		return d.subscribed()
	case TypeEvents:
		return d.events()
	case TypeGap:
		return d.gap()
	case TypeError:
		return d.error()
	case TypeAuth:
		m := &Auth{}
		r.fields(func(key string) bool {
			if key != "proof" {
				return false
			}
			m.Proof = r.fixed(proofSize)
			return true
		})
		return m
	case TypeInquire:
		r.fields(func(string) bool { return false })
		return &Inquire{}
	case TypeStatus:
		m := &Status{}
		r.fields(func(key string) bool {
			if key != "json" {
				return false
			}
			m.JSON = []byte(r.text(MaxStatus))
			return true
		})
		return m
	case TypeCalls:
		return d.calls()
	case TypeResults:
		return d.results()
	case TypeAttach:
		return &Attach{Tid: uint32(r.single("tid", math.MaxUint32))}
	case TypeHail:
		r.fields(func(string) bool { return false })
		return &Hail{}
	case TypeAck:
		return &Ack{Seq: r.single("seq", math.MaxUint64)}
	case TypePing:
		m := &Ping{}
		r.fields(func(key string) bool {
			switch key {
			case "id":
				m.ID = r.uint(math.MaxUint64)
			case "sync":
				m.Sync = r.bool()
			default:
				return false
			}
			return true
		})
		return m
	case TypePong:
		m := &Pong{}
		r.fields(func(key string) bool {
			switch key {
			case "id":
				m.ID = r.uint(math.MaxUint64)
			case "seq":
				m.Seq = r.uint(math.MaxUint64)
			default:
				return false
			}
			return true
		})
		return m
	}
	r.fail("message type")
	return nil
}

// single reads a map of which one unsigned field matters.
func (r *reader) single(name string, limit uint64) (n uint64) {
	r.fields(func(key string) bool {
		if key != name {
			return false
		}
		n = r.uint(limit)
		return true
	})
	return n
}

func (d *Decoder) hello() *Hello {
	r, m, magic := &d.r, &Hello{}, false
	r.fields(func(key string) bool {
		switch key {
		case "magic":
			magic = string(r.bytes(len(Magic))) == Magic
		case "v":
			m.Version = uint32(r.uint(math.MaxUint32))
		case "min":
			m.MinVersion = uint32(r.uint(math.MaxUint32))
		case "caps":
			m.Caps = r.texts(64, 64)
		case "agent":
			m.Agent = r.text(256)
		case "nonce":
			m.Nonce = r.fixed(nonceSize)
		case "auth":
			m.Auth = r.bool()
		case "proof":
			m.Proof = r.fixed(proofSize)
		default:
			return false
		}
		return true
	})
	if !magic {
		r.fail("magic")
	}
	return m
}

// texts reads an array of at most n byte strings.
func (r *reader) texts(n, limit int) []string {
	count := r.arrayLen()
	if count > n {
		r.fail("too many elements")
	}
	var list []string
	for ; count > 0 && r.err == nil; count-- {
		list = append(list, r.text(limit))
	}
	return list
}

func (d *Decoder) subscribe() *Subscribe {
	r, m := &d.r, &Subscribe{}
	r.fields(func(key string) bool {
		switch key {
		case "root":
			m.Root = r.text(MaxName)
		case "mask":
			m.Mask = notify.Mask(r.uint(math.MaxUint64))
		case "inc":
			m.Include = r.texts(MaxGlobs, MaxGlob)
		case "exc":
			m.Exclude = r.texts(MaxGlobs, MaxGlob)
		case "from":
			m.From, m.Resume = r.uint(math.MaxUint64), true
		case "stream":
			m.Stream = r.fixed(StreamSize)
		case "compact":
			m.Compact = Compaction(r.uint(math.MaxUint8))
		case "win":
			m.Window = uint32(r.uint(MaxWindow))
		case "origin":
			m.Origin = r.text(MaxOrigin)
		default:
			return false
		}
		return true
	})
	return m
}

func (d *Decoder) subscribed() *Subscribed {
	r, m := &d.r, &Subscribed{}
	r.fields(func(key string) bool {
		switch key {
		case "root":
			m.Root = r.text(MaxName)
		case "stream":
			m.Stream = r.fixed(StreamSize)
		case "next":
			m.Next = r.uint(math.MaxUint64)
		case "head":
			m.Head = r.uint(math.MaxUint64)
		case "id":
			d.identity(&m.Object)
		case "note":
			m.Note = r.text(MaxText)
		default:
			return false
		}
		return true
	})
	return m
}

func (d *Decoder) gap() *Gap {
	r, m := &d.r, &Gap{}
	r.fields(func(key string) bool {
		switch key {
		case "first":
			m.First = r.uint(math.MaxUint64)
		case "last":
			m.Last = r.uint(math.MaxUint64)
		case "scope":
			m.Scope = r.dir("")
		case "why":
			m.Reason = Reason(r.uint(math.MaxUint8))
		default:
			return false
		}
		return true
	})
	return m
}

func (d *Decoder) error() *Error {
	r, m := &d.r, &Error{}
	r.fields(func(key string) bool {
		switch key {
		case "code":
			m.Code = Code(r.uint(math.MaxUint32))
		case "text":
			m.Text = r.text(MaxText)
		default:
			return false
		}
		return true
	})
	return m
}
