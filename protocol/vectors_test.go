package protocol

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/heraldfs/heraldfs/notify"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors.json")

// vector is one frame as testdata/vectors.json describes it: Hex is the whole frame, Value
// its payload with each bin as {"bin": hex} and each str that is no key as {"str": text},
// or Error the refusal.
type vector struct {
	Name  string `json:"name"`
	About string `json:"about"`
	Hex   string `json:"hex"`
	Value any    `json:"value,omitempty"`
	Error string `json:"error,omitempty"`
}

func seq(n int, from byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = from + byte(i)
	}
	return b
}

func vectorToken() []byte { return []byte("correct horse battery staple") }

type goodVector struct {
	name, about string
	m           Message
}

func goodVectors() []goodVector {
	at := time.Unix(1790000000, 123456789)
	sealer := NewSealer(seq(32, 0x40))
	id := sealer.Seal(notify.Object{FS: 0x1122334455667788, Type: 1, Handle: string(seq(8, 1))})
	seal := func(from byte) Identity {
		return sealer.Seal(notify.Object{FS: 0x1122334455667788, Type: 1, Handle: string(seq(8, from))})
	}
	dir, sub, other := seal(0x10), seal(0x20), seal(0x30)
	cn, sn := seq(32, 0x00), seq(32, 0x80)
	return []goodVector{
		{"hello-client", "the client opens", &Hello{Version: 1, MinVersion: 1, Caps: []string{}, Agent: "example/1.0", Nonce: cn}},
		{"hello-caps", "the same with capabilities, for two versions", &Hello{Version: 2, MinVersion: 1, Caps: []string{CapState, CapBarrier}, Agent: "example/1.0", Nonce: cn}},
		{"hello-server", "the server answers and wants a token", &Hello{Version: 1, MinVersion: 1, Agent: "heraldfs", Nonce: sn, Auth: true, Proof: proof(vectorToken(), "server", cn, sn)}},
		{"auth", "the client proves that it knows the token", &Auth{Proof: proof(vectorToken(), "client", cn, sn)}},
		{"subscribe", "everything from now on", &Subscribe{Root: "src", Mask: notify.DefaultMask}},
		{"subscribe-resume", "continue after 41; Go files only, nothing folded", &Subscribe{Root: "src", Mask: notify.Create | notify.Delete, Include: []string{"*.go"}, Exclude: []string{"vendor/**"}, Resume: true, From: 41, Stream: seq(16, 0xa0), Compact: CompactNever, Window: 8}},
		{"subscribe-origin", "everything from now on, for who is behind the file server called guest1", &Subscribe{Root: "src", Mask: notify.DefaultMask, Origin: "guest1"}},
		{"subscribed", "it continues with 42", &Subscribed{Root: "src", Stream: seq(16, 0xa0), Next: 42, Head: 99}},
		{"subscribed-root", "the same, and the identity of the root", &Subscribed{Root: "src", Stream: seq(16, 0xa0), Next: 42, Head: 99, Object: dir}},
		{"subscribed-note", "with something for the log", &Subscribed{Root: "src", Stream: seq(16, 0xa0), Next: 42, Head: 99, Note: "guest1 has ended"}},
		{"events", "a create with everything known", &Events{First: 42, Last: 42, Events: []Event{{Seq: 42, Time: at, Op: OpCreate, From: Place{"dir/sub", "f"}, Pid: 4711, Object: id}}}},
		{"events-state", "a write; the file as it was on the host when this was sent, and who did it", &Events{First: 42, Last: 42, Events: []Event{{Seq: 42, Time: at, Op: OpModify, From: Place{"", "f"}, Object: id, Dir: dir, Origin: "guest1", FromState: State{Known: true, Exists: true, Ino: 99, Size: 4096, Mtime: at.UnixNano(), Ctime: at.UnixNano(), Same: true}}}}},
		{"events-exchange", "an exchange with a directory in another directory, one of the names being gone again", &Events{First: 42, Last: 42, Events: []Event{{Seq: 42, Time: at, Op: OpExchange, From: Place{"", "f"}, To: Place{"sub", "d"}, Object: id, Dir: dir, NewDir: sub, Other: other, OtherIsDir: true, Verify: true, FromState: State{Known: true}}}}},
		{"events-found", "a file that the server found in a new directory", &Events{First: 42, Last: 42, Events: []Event{{Seq: 42, Time: at, Op: OpCreate, From: Place{"sub", "f"}, Dir: sub, Found: true}}}},
		{"events-rename", "a rename, one event, both places and a cookie", &Events{First: 43, Last: 43, Events: []Event{{Seq: 43, Time: at, Op: OpRename, IsDir: true, From: Place{"", "old"}, To: Place{"dir", "new"}, Cookie: 77}}}},
		{"events-moved-in", "a rename from outside: its source is the placeholder", &Events{First: 44, Last: 44, Events: []Event{{Seq: 44, Time: at, Op: OpRename, To: Place{"dir", "new"}}}}},
		{"events-moved-out", "a rename to outside: its destination is the placeholder", &Events{First: 45, Last: 45, Events: []Event{{Seq: 45, Time: at, Op: OpRename, From: Place{"dir", "new"}}}}},
		{"events-bytes", "a name that is not text; 46 and 48 were filtered", &Events{First: 46, Last: 48, Events: []Event{{Seq: 47, Time: at, Op: OpDelete, From: Place{"", "\xff\xfe\n"}}}}},
		{"events-none", "nothing in 49 to 60 was wanted", &Events{First: 49, Last: 60, Events: []Event{}}},
		{"ack", "everything up to 60 has been dealt with", &Ack{Seq: 60}},
		{"ping", "are you there", &Ping{ID: 7}},
		{"pong", "yes", &Pong{ID: 7}},
		{"ping-sync", "tell me when every earlier change has its sequence", &Ping{ID: 8, Sync: true}},
		{"pong-sync", "the last one was 99", &Pong{ID: 8, Seq: 99}},
		{"gap", "61 to 1000 fell off the journal; compare dir/sub", &Gap{First: 61, Last: 1000, Scope: "dir/sub", Reason: GapJournal}},
		{"gap-stream", "another stream: compare everything", &Gap{First: 1, Last: 0, Reason: GapStream}},
		{"attach", "an agent's thread 147 will perform the calls", &Attach{Tid: 147}},
		{"calls", "open the directory dir as slot 3, and rename a in it to b in the root", &Calls{ID: 9, Calls: []notify.Call{
			{Op: notify.CallWalk, Dir: notify.SlotRoot, Name: "dir", Slot: 3},
			{Op: notify.CallRename, Dir: 3, Name: "a", NewDir: notify.SlotRoot, NewName: "b"},
		}}},
		{"results", "the first was performed, the second gave ENOENT", &Results{ID: 9, Done: 1, Errno: 2}},
		{"hail", "whoever is there, open anew", &Hail{}},
		{"error-version", "no common version", &Error{Code: CodeVersion, Text: "server speaks 1 to 1, client 2 to 2"}},
		{"error", "no such root", &Error{Code: CodeNoRoot, Text: "no root \"tmp\""}},
		{"error-origin", "no such origin", &Error{Code: CodeNoOrigin, Text: "no --origin guest2"}},
		{"inquire", "how is the server doing", &Inquire{}},
		{"status", "it is healthy", &Status{JSON: []byte(`{"kind":"serve","healthy":true}`)}},
	}
}

func frameOf(payload []byte) string {
	return fmt.Sprintf("%08x%x", len(payload), payload)
}

// oddVectors are frames that no Encoder here makes.
func oddVectors() []vector {
	raw := func(s string) string {
		b, err := hex.DecodeString(s)
		if err != nil {
			panic(err)
		}
		return frameOf(b)
	}
	return []vector{
		{Name: "unknown-field", About: "a ping with a field of the future: skipped", Hex: raw("920782a269640aa378797a93c00192a16102")},
		{Name: "unknown-type", About: "a message of the future: ignored", Hex: raw("92cd012c81a16101")},
		{Name: "unknown-operation", About: "an event whose operation is of the future: left out", Hex: raw("920583a5666972737401a46c61737401a26576" + "91" + "82a17301a16fcc63")},
		{Name: "bad-claim", About: "2^27 elements in five bytes", Hex: raw("9205" + "81a26576" + "dd08000000"), Error: "malformed"},
		{Name: "bad-claim-bytes", About: "a name of 4 GiB", Hex: raw("9209" + "81a573636f7065" + "c6ffffffff"), Error: "malformed"},
		{Name: "bad-name-slash", About: "a name with a slash", Hex: raw("9205" + "81a26576" + "91" + "82a16f01a166" + "92c400c403612f62"), Error: "malformed"},
		{Name: "bad-dir-dotdot", About: "a directory with a .. in it", Hex: raw("9205" + "81a26576" + "91" + "82a16f01a166" + "92c4022e2ec40161"), Error: "malformed"},
		{Name: "bad-no-place", About: "a delete of nothing", Hex: raw("9205" + "81a26576" + "91" + "82a16f02a166" + "c0"), Error: "malformed"},
		{Name: "bad-trailing", About: "a byte after the end", Hex: raw("920681a373657101" + "00"), Error: "malformed"},
		{Name: "bad-frame", About: "an HTTP request", Hex: hex.EncodeToString([]byte("GET / HTTP/1.1\r\n")), Error: "too big"},
		{Name: "bad-empty", About: "a frame of no bytes", Hex: "00000000", Error: "too big"},
	}
}

func allVectors(t *testing.T) []vector {
	t.Helper()
	var list []vector
	for _, g := range goodVectors() {
		var b bytes.Buffer
		if err := NewEncoder(&b).Encode(g.m); err != nil {
			t.Fatal(err)
		}
		list = append(list, vector{Name: g.name, About: g.about, Hex: hex.EncodeToString(b.Bytes())})
	}
	list = append(list, oddVectors()...)
	for i := range list {
		if list[i].Error == "" {
			list[i].Value = generic(t, list[i].Hex)
		}
	}
	return list
}

// generic decodes a frame's payload with nothing but the msgpack library, and
// returns it in the notation of the vectors.
func generic(t *testing.T, frame string) any {
	t.Helper()
	b, err := hex.DecodeString(frame)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := msgpack.Unmarshal(b[headerSize:], &v); err != nil {
		t.Fatal(err)
	}
	return neutral(v)
}

func neutral(v any) any {
	switch v := v.(type) {
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = neutral(v[i])
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k := range v {
			out[k] = neutral(v[k])
		}
		return out
	case []byte:
		return map[string]any{"bin": hex.EncodeToString(v)}
	case string:
		return map[string]any{"str": v}
	case nil, bool:
		return v
	}
	// Numbers of all widths are one thing; text would lose 64-bit ones to a JSON reader's floats.
	return json.Number(fmt.Sprint(v))
}

func TestVectors(t *testing.T) {
	list := allVectors(t)
	var want bytes.Buffer
	enc := json.NewEncoder(&want)
	enc.SetIndent("", "  ")
	if err := enc.Encode(list); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("testdata/vectors.json", want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.String(), string(got)); diff != "" {
		t.Errorf("testdata/vectors.json differs from what is sent:\n%s", diff)
	}
}

// TestVectorsDecode reads the file as another implementation would.
func TestVectorsDecode(t *testing.T) {
	data, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var list []vector
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatal(err)
	}
	good := make(map[string]Message)
	for _, g := range goodVectors() {
		good[g.name] = g.m
	}
	for _, v := range list {
		t.Run(v.Name, func(t *testing.T) {
			b, err := hex.DecodeString(v.Hex)
			if err != nil {
				t.Fatal(err)
			}
			m, err := NewDecoder(bytes.NewReader(b), 0).Decode()
			switch v.Error {
			case "malformed":
				if !errors.Is(err, ErrMalformed) {
					t.Fatalf("got %v, %v, want ErrMalformed", m, err)
				}
				return
			case "too big":
				if !errors.Is(err, ErrFrameTooBig) {
					t.Fatalf("got %v, %v, want ErrFrameTooBig", m, err)
				}
				return
			}
			if want := good[v.Name]; want != nil {
				if err != nil {
					t.Fatal(err)
				}
				var again bytes.Buffer
				if err := NewEncoder(&again).Encode(m); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(v.Hex, hex.EncodeToString(again.Bytes())); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

func TestUnknownIsSkipped(t *testing.T) {
	decode := func(name string) (Message, error) {
		for _, v := range oddVectors() {
			if v.Name == name {
				b, _ := hex.DecodeString(v.Hex)
				return DecodeMessage(b[headerSize:])
			}
		}
		t.Fatalf("no vector %s", name)
		return nil, nil
	}
	if m, err := decode("unknown-field"); err != nil || !cmp.Equal(m, Message(&Ping{ID: 10})) {
		t.Errorf("field: %v, %v", m, err)
	}
	if m, err := decode("unknown-type"); err != nil || m != nil {
		t.Errorf("type: %v, %v", m, err)
	}
	m, err := decode("unknown-operation")
	if ev, ok := m.(*Events); err != nil || !ok || ev.Skipped != 1 || len(ev.Events) != 0 || ev.Last != 1 {
		t.Errorf("operation: %v, %v", m, err)
	}
}

// TestDocument holds docs/protocol.md to the vectors: each block of the form
// "```hex NAME" is that vector, and no vector is missing.
func TestDocument(t *testing.T) {
	doc, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	spaces := regexp.MustCompile(`\s+|#[^\n]*`)
	shown := make(map[string]string)
	for _, m := range regexp.MustCompile("(?s)```hex (\\S+)\n(.*?)```").FindAllStringSubmatch(string(doc), -1) {
		shown[m[1]] = spaces.ReplaceAllString(m[2], "")
	}
	for _, v := range allVectors(t) {
		if diff := cmp.Diff(v.Hex, shown[v.Name]); diff != "" {
			t.Errorf("%s (want -, document +):\n%s", v.Name, diff)
		}
		delete(shown, v.Name)
	}
	for name := range shown {
		t.Errorf("document shows an unknown vector %s", name)
	}
}
