package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOfferIOURing(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct{ name, before, during, says string }{
		{"off", "N\n", "Y", "switched on for the run"},
		{"on", "Y\n", "Y\n", "already"},
		{"absent", "", "", "no FUSE over io_uring"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(dir, tc.name)
			if tc.before != "" {
				if err := os.WriteFile(path, []byte(tc.before), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			check := func(want string) {
				t.Helper()
				if got, err := os.ReadFile(path); string(got) != want || (err != nil) != (want == "") {
					t.Errorf("the switch is %q, %v; want %q", got, err, want)
				}
			}
			var said bytes.Buffer
			b := &bench{progress: &said}
			if err := b.offerIOURing(path); err != nil {
				t.Fatal(err)
			}
			check(tc.during)
			if !strings.Contains(said.String(), tc.says) {
				t.Errorf("%q does not say %q", said.String(), tc.says)
			}
			if err := b.unwind(0); err != nil {
				t.Error(err)
			}
			check(tc.before)
		})
	}
}

func TestTransports(t *testing.T) {
	var tr transports
	if got := tr.String(); got != "" {
		t.Errorf("without a mount: %q", got)
	}
	for range 2 {
		tr.add("heraldfs", true)
		tr.add("heraldfs --no-open", true)
		tr.add("heraldfs --io-uring=off", false)
	}
	const want = "Requests came by FUSE over io_uring to heraldfs, heraldfs --no-open; by reads of /dev/fuse to heraldfs --io-uring=off."
	if got := tr.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
