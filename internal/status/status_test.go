package status

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func example() *Status {
	return &Status{
		Kind: Serve, Version: "v1", Pid: 42, Started: time.Unix(1000, 0).UTC(), Healthy: false, Reason: "no \x1b[31mway",
		Replay: &Replay{
			Events: map[string]uint64{"create": 1, "modify": 7, "delete": 0}, Replayed: 8,
			Delay: Delay{Count: 100, Sum: 1, Buckets: []Bucket{{0.00005, 40}, {0.0002, 60}, {10, 99}}},
		},
		Roots: []Root{{
			Name: "logs", Dir: "/var/log\n", Events: map[string]uint64{"create": 3},
			Journal: Journal{Events: 3, Bytes: 3 << 20, First: 5, Last: 7, Dir: "/j", Failed: true}, Connected: 3,
			Subscribers: []Subscriber{{Peer: "10.0.0.1:5\x07", Agent: "x", Behind: 9}},
		}},
	}
}

func TestJSON(t *testing.T) {
	got, err := Parse(example().JSON())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(example(), got); diff != "" {
		t.Error(diff)
	}
	if _, err := Parse([]byte(`{"kind":"mount","of the future":{}}`)); err != nil {
		t.Error(err)
	}
	if _, err := Parse([]byte(`nonsense`)); err == nil {
		t.Error("nonsense was parsed")
	}
}

// TestText: what is wrong is loud, and no peer writes to the terminal.
func TestText(t *testing.T) {
	var b bytes.Buffer
	if err := example().Text(&b, time.Unix(1061, 0)); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, want := range []string{
		"NOT HEALTHY: no ?[31mway", "pid 42, up 1m1s", "modify 7, create 1\n", "half at most 200µs, 99% at most 10s",
		"logs: /var/log?", "3 events (5 to 7), 3.0 MiB, IN MEMORY ONLY: /j could not be written",
		"10.0.0.1:5?", "9 events behind", "and 2 that are less behind",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
	if strings.ContainsAny(text, "\x1b\x07") {
		t.Errorf("control characters: %q", text)
	}
}

func TestQuantile(t *testing.T) {
	d := &example().Replay.Delay
	if v, ok := d.Quantile(0.4); !ok || v != 0.00005 {
		t.Errorf("0.4: %v, %v", v, ok)
	}
	if _, ok := d.Quantile(1); ok {
		t.Error("what is beyond the last bound has none")
	}
	if _, ok := (&Delay{}).Quantile(0.5); ok {
		t.Error("a quantile of nothing")
	}
}
