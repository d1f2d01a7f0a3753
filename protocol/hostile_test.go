package protocol

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

func payload(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestClaims shows that a peer pays for what it claims: none of these takes memory.
func TestClaims(t *testing.T) {
	claims := map[string]string{
		"events":          "920581a26576dd08000000",
		"events, array16": "920581a26576dcffff",
		"map":             "9205df08000000",
		"outer array":     "dd08000000",
		"unknown array":   "920681a178dd08000000",
		"unknown map":     "920681a178df08000000",
		"unknown bytes":   "920681a178c6ffffffff",
		"unknown ext":     "920681a178c9ffffffff00",
		"scope":           "920981a573636f7065c6ffffffff",
		"key":             "920981dbffffffff",
		"globs":           "920381a3696e63dd08000000",
		"caps":            "920181a463617073dd08000000",
	}
	for name, h := range claims {
		t.Run(name, func(t *testing.T) {
			b := payload(t, h)
			var d Decoder
			decode := func() {
				if _, err := d.message(b); !errors.Is(err, ErrMalformed) {
					t.Fatalf("got %v, want ErrMalformed", err)
				}
			}
			decode()
			if bytes := allocated(100, decode) / 100; bytes > 4<<10 {
				t.Errorf("%d bytes allocated for %d received", bytes, len(b))
			}
			if n := testing.AllocsPerRun(100, decode); n > 16 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

func allocated(n int, f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		f()
	}
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestClaimedFrame: a frame that is announced but does not come costs one chunk.
func TestClaimedFrame(t *testing.T) {
	hdr := binary.BigEndian.AppendUint32(nil, MaxFrame)
	decode := func() {
		_, err := NewDecoder(bytes.NewReader(hdr), 0).Decode()
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("got %v, want ErrUnexpectedEOF", err)
		}
	}
	if n := allocated(10, decode) / 10; n > 2*readChunk {
		t.Errorf("%d bytes allocated for 4 received", n)
	}
}

// TestNesting: a frame of nothing but array headers needs no stack.
func TestNesting(t *testing.T) {
	b := append(payload(t, "920681a178"), bytes.Repeat([]byte{0x91}, MaxFrame-100)...)
	b = append(b, 0xc0)
	if _, err := DecodeMessage(b); err != nil {
		t.Fatal(err)
	}
	// Each header claims two, the second of which never comes.
	b = append(payload(t, "920681a178"), bytes.Repeat([]byte{0x92}, MaxFrame-100)...)
	if _, err := DecodeMessage(b); !errors.Is(err, ErrMalformed) {
		t.Fatalf("got %v, want ErrMalformed", err)
	}
}

func TestPieces(t *testing.T) {
	var b bytes.Buffer
	enc := NewEncoder(&b)
	for _, g := range goodVectors() {
		if err := enc.Encode(g.m); err != nil {
			t.Fatal(err)
		}
	}
	whole := b.Bytes()
	d := NewDecoder(iotest.OneByteReader(bytes.NewReader(whole)), 0)
	for _, g := range goodVectors() {
		m, err := d.Decode()
		if err != nil || m.Type() != g.m.Type() {
			t.Fatalf("%s: %v, %v", g.name, m, err)
		}
	}
	if _, err := d.Decode(); err != io.EOF {
		t.Fatalf("at the end: %v, want io.EOF", err)
	}
	first := int(binary.BigEndian.Uint32(whole)) + headerSize
	for n := 1; n < first; n++ {
		_, err := NewDecoder(bytes.NewReader(whole[:n]), 0).Decode()
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%d of %d bytes: %v, want ErrUnexpectedEOF", n, first, err)
		}
	}
}

// TestLimits: what docs/protocol.md allows is taken, and one more is not.
func TestLimits(t *testing.T) {
	text := func(n int) string { return strings.Repeat("x", n) }
	list := func(n int, s string) (l []string) {
		for range n {
			l = append(l, s)
		}
		return l
	}
	events := func(n int) []Event {
		l := make([]Event, n)
		for i := range l {
			l[i] = Event{Op: OpCreate, From: Place{"", "f"}}
		}
		return l
	}
	for name, c := range map[string]struct {
		limit int
		make  func(n int) Message
	}{
		"capabilities":         {64, func(n int) Message { return &Hello{Caps: list(n, "c")} }},
		"bytes of a cap":       {64, func(n int) Message { return &Hello{Caps: []string{text(n)}} }},
		"bytes of an agent":    {256, func(n int) Message { return &Hello{Agent: text(n)} }},
		"bytes of a root":      {1024, func(n int) Message { return &Subscribe{Root: text(n)} }},
		"globs":                {32, func(n int) Message { return &Subscribe{Include: list(n, "g")} }},
		"bytes of a glob":      {256, func(n int) Message { return &Subscribe{Exclude: []string{text(n)}} }},
		"window":               {1024, func(n int) Message { return &Subscribe{Window: uint32(n)} }},
		"events":               {4096, func(n int) Message { return &Events{Events: events(n)} }},
		"bytes of a directory": {65536, func(n int) Message { return &Gap{Scope: text(n)} }},
		"bytes of a name":      {1024, func(n int) Message { return &Events{Events: []Event{{Op: OpCreate, From: Place{"", text(n)}}}} }},
		"bytes of an origin": {255, func(n int) Message {
			return &Events{Events: []Event{{Op: OpCreate, From: Place{"", "f"}, Origin: text(n)}}}
		}},
		"bytes of a text":   {1024, func(n int) Message { return &Error{Text: text(n)} }},
		"bytes of a status": {524288, func(n int) Message { return &Status{JSON: []byte(text(n))} }},
	} {
		for n, want := range map[int]error{c.limit: nil, c.limit + 1: ErrMalformed} {
			var b bytes.Buffer
			m := c.make(n)
			if h, ok := m.(*Hello); ok {
				h.Nonce = make([]byte, nonceSize)
			}
			if err := NewEncoder(&b).Encode(m); err != nil {
				t.Fatal(err)
			}
			if _, err := NewDecoder(&b, 0).Decode(); !errors.Is(err, want) {
				t.Errorf("%d %s: got %v, want %v", n, name, err, want)
			}
		}
	}
}

func TestEncodeTooBig(t *testing.T) {
	var b bytes.Buffer
	err := NewEncoder(&b).Encode(&Gap{Scope: strings.Repeat("x", MaxFrame)})
	if !errors.Is(err, ErrFrameTooBig) || b.Len() != 0 {
		t.Fatalf("got %v and %d bytes, want ErrFrameTooBig and none", err, b.Len())
	}
}

func FuzzMessage(f *testing.F) {
	for _, v := range append(oddVectors(), encodedVectors(f)...) {
		b := payload(f, v.Hex)
		f.Add(b[headerSize:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > MaxFrame {
			return
		}
		m, err := DecodeMessage(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if m == nil {
			return
		}
		// What was understood can be said, and is then understood the same way.
		var one, two bytes.Buffer
		if err := NewEncoder(&one).Encode(m); err != nil {
			if errors.Is(err, ErrFrameTooBig) {
				return
			}
			t.Fatal(err)
		}
		again, err := NewDecoder(&one, 0).Decode()
		if err != nil {
			t.Fatalf("%#v: %v", m, err)
		}
		if err := NewEncoder(&one).Encode(m); err != nil {
			t.Fatal(err)
		}
		if err := NewEncoder(&two).Encode(again); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(one.Bytes(), two.Bytes()) {
			t.Fatalf("%x became %x", one.Bytes(), two.Bytes())
		}
	})
}

func FuzzStream(f *testing.F) {
	for _, v := range append(oddVectors(), encodedVectors(f)...) {
		f.Add(payload(f, v.Hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := NewDecoder(iotest.HalfReader(bytes.NewReader(b)), 0)
		for {
			if _, err := d.Decode(); err != nil {
				return
			}
		}
	})
}

func encodedVectors(f *testing.F) []vector {
	var list []vector
	for _, g := range goodVectors() {
		var b bytes.Buffer
		if err := NewEncoder(&b).Encode(g.m); err != nil {
			f.Fatal(err)
		}
		list = append(list, vector{Hex: hex.EncodeToString(b.Bytes())})
	}
	return list
}
