package protocol

import (
	"encoding/binary"
	"fmt"
	"io"
)

// headerSize is the length of a frame's length.
const headerSize = 4

// Encoder writes frames. It is not safe for concurrent use.
type Encoder struct {
	dst io.Writer
	w   writer
}

// NewEncoder returns an Encoder that writes each frame to w with one Write.
func NewEncoder(w io.Writer) *Encoder { return &Encoder{dst: w} }

// Encode writes one message. A message that exceeds MaxFrame is not sent:
// ErrFrameTooBig.
func (e *Encoder) Encode(m Message) error {
	w := &e.w
	w.out.Reset()
	w.out.Write(make([]byte, headerSize))
	w.message(m)
	b := w.out.Bytes()
	if len(b)-headerSize > MaxFrame {
		return fmt.Errorf("encode message of type %d, %d bytes: %w", m.Type(), len(b), ErrFrameTooBig)
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-headerSize))
	_, err := e.dst.Write(b)
	return err
}

// EventEncoder encodes single events, for Events.Raw. The zero value is ready.
type EventEncoder struct{ w writer }

// AppendEvent appends the msgpack form of ev to dst.
func (e *EventEncoder) AppendEvent(dst []byte, ev *Event) []byte {
	e.w.out.Reset()
	e.w.event(ev)
	return append(dst, e.w.out.Bytes()...)
}

func (w *writer) message(m Message) {
	w.arrayLen(2)
	w.uint(uint64(m.Type()))
	switch m := m.(type) {
	case *Hello:
		w.hello(m)
	case *Auth:
		w.mapLen(1)
		w.keyBin("proof", string(m.Proof))
	case *Subscribe:
		w.subscribe(m)
	case *Subscribed:
		w.mapLen(4 + count(!m.Object.IsZero(), m.Note != ""))
		w.keyBin("root", m.Root)
		w.keyBin("stream", string(m.Stream))
		w.keyUint("next", m.Next)
		w.keyUint("head", m.Head)
		w.keyIdentity("id", &m.Object)
		if m.Note != "" {
			w.keyBin("note", m.Note)
		}
	case *Events:
		w.events(m)
	case *Ack:
		w.mapLen(1)
		w.keyUint("seq", m.Seq)
	case *Ping:
		w.mapLen(1 + count(m.Sync))
		w.keyUint("id", m.ID)
		if m.Sync {
			w.keyBool("sync", true)
		}
	case *Pong:
		w.mapLen(1 + count(m.Seq != 0))
		w.keyUint("id", m.ID)
		if m.Seq != 0 {
			w.keyUint("seq", m.Seq)
		}
	case *Gap:
		w.mapLen(4)
		w.keyUint("first", m.First)
		w.keyUint("last", m.Last)
		w.keyBin("scope", m.Scope)
		w.keyUint("why", uint64(m.Reason))
	case *Attach:
		w.mapLen(1)
		w.keyUint("tid", uint64(m.Tid))
	case *Calls:
		w.calls(m)
	case *Results:
		w.mapLen(3)
		w.keyUint("id", m.ID)
		w.keyUint("done", uint64(m.Done))
		w.keyUint("errno", uint64(m.Errno))
	case *Hail:
		w.mapLen(0)
	case *Error:
		w.mapLen(2)
		w.keyUint("code", uint64(m.Code))
		w.keyBin("text", m.Text)
	case *Inquire:
		w.mapLen(0)
	case *Status:
		w.mapLen(1)
		w.keyBin("json", string(m.JSON))
	}
}

func (w *writer) hello(m *Hello) {
	w.mapLen(6 + count(m.Auth, len(m.Proof) > 0))
	w.keyBin("magic", Magic)
	w.keyUint("v", uint64(m.Version))
	w.keyUint("min", uint64(m.MinVersion))
	w.keyBins("caps", m.Caps)
	w.keyBin("agent", m.Agent)
	w.keyBin("nonce", string(m.Nonce))
	if m.Auth {
		w.keyBool("auth", true)
	}
	if len(m.Proof) > 0 {
		w.keyBin("proof", string(m.Proof))
	}
}

func (w *writer) subscribe(m *Subscribe) {
	w.mapLen(6 + count(m.Resume, len(m.Stream) > 0, m.Origin != ""))
	w.keyBin("root", m.Root)
	w.keyUint("mask", uint64(m.Mask))
	w.keyBins("inc", m.Include)
	w.keyBins("exc", m.Exclude)
	w.keyUint("compact", uint64(m.Compact))
	w.keyUint("win", uint64(m.Window))
	if m.Resume {
		w.keyUint("from", m.From)
	}
	if len(m.Stream) > 0 {
		w.keyBin("stream", string(m.Stream))
	}
	if m.Origin != "" {
		w.keyBin("origin", m.Origin)
	}
}

func (w *writer) events(m *Events) {
	w.mapLen(3)
	w.keyUint("first", m.First)
	w.keyUint("last", m.Last)
	w.key("ev")
	if m.Raw != nil {
		w.arrayLen(len(m.Raw))
		for _, raw := range m.Raw {
			w.out.Write(raw)
		}
		return
	}
	w.arrayLen(len(m.Events))
	for i := range m.Events {
		w.event(&m.Events[i])
	}
}

// event writes a map with the fields that are not zero. A rename and an exchange have both
// places, nil standing for the unknown one.
func (w *writer) event(ev *Event) {
	two := ev.Op == OpRename || ev.Op == OpExchange || ev.To.Known()
	w.mapLen(4 + count(two, ev.IsDir, ev.Cookie != 0, ev.Pid != 0, !ev.Object.IsZero(), !ev.Dir.IsZero(), !ev.NewDir.IsZero(),
		!ev.Other.IsZero(), ev.OtherIsDir, ev.Verify, ev.Found, ev.Origin != "", ev.FromState.Known, ev.ToState.Known))
	w.keyUint("s", ev.Seq)
	w.key("t")
	if ev.Time.IsZero() {
		w.int(0)
	} else {
		w.int(ev.Time.UnixNano())
	}
	w.keyUint("o", uint64(ev.Op))
	w.key("f")
	w.place(ev.From)
	if two {
		w.key("to")
		w.place(ev.To)
	}
	if ev.IsDir {
		w.keyBool("d", true)
	}
	if ev.Cookie != 0 {
		w.keyUint("c", uint64(ev.Cookie))
	}
	if ev.Pid != 0 {
		w.key("p")
		w.int(int64(ev.Pid))
	}
	w.keyIdentity("id", &ev.Object)
	w.keyIdentity("dfid", &ev.Dir)
	w.keyIdentity("nfid", &ev.NewDir)
	w.keyIdentity("oid", &ev.Other)
	if ev.OtherIsDir {
		w.keyBool("od", true)
	}
	if ev.Verify {
		w.keyBool("v", true)
	}
	if ev.Found {
		w.keyBool("u", true)
	}
	if ev.Origin != "" {
		w.keyBin("origin", ev.Origin)
	}
	w.keyState("st", &ev.FromState)
	w.keyState("ts", &ev.ToState)
}

// keyIdentity writes nothing for an unknown object.
func (w *writer) keyIdentity(k string, id *Identity) {
	if !id.IsZero() {
		w.key(k)
		w.identity(id)
	}
}

// keyState writes nothing for an unknown state, and nil for an absent entry.
func (w *writer) keyState(k string, s *State) {
	if !s.Known {
		return
	}
	w.key(k)
	if !s.Exists {
		w.null()
		return
	}
	w.arrayLen(5)
	w.uint(s.Ino)
	w.uint(s.Size)
	w.int(s.Mtime)
	w.int(s.Ctime)
	_ = w.enc.EncodeBool(s.Same)
}

func (w *writer) place(p Place) {
	if !p.Known() {
		w.null()
		return
	}
	w.arrayLen(2)
	w.bin(p.Dir)
	w.bin(p.Name)
}

func (w *writer) identity(id *Identity) {
	w.arrayLen(4)
	w.uint(id.FS)
	w.int(int64(id.Type))
	w.bin(id.Handle)
	_ = w.enc.EncodeBytesLen(MACSize)
	w.out.Write(id.MAC[:])
}

func count(present ...bool) int {
	n := 0
	for _, p := range present {
		if p {
			n++
		}
	}
	return n
}
