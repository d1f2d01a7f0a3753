package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

func TestMasks(t *testing.T) {
	event := func(mask notify.Mask, name string) []byte {
		b := make([]byte, 16+len(name))
		binary.NativeEndian.PutUint32(b[4:], uint32(mask))
		binary.NativeEndian.PutUint32(b[12:], uint32(len(name)))
		copy(b[16:], name)
		return b
	}
	want := []notify.Mask{notify.Create, notify.Modify, notify.QOverflow}
	got := masks(slices.Concat(event(want[0], "name\x00\x00\x00\x00"), event(want[1], ""), event(want[2], "")))
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestCountReads(t *testing.T) {
	const text = `10 read(6, ""..., 1048656) = 48
11 read(6,  <unfinished ...>
10 read(6, ""..., 1048656) = 4176
11 <... read resumed>""..., 1048656) = 56
11 read(6, 0xc000100000, 1048656) = -1 EAGAIN (Resource temporarily unavailable)
10 read(6, 0xc000100000, 1048656) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)
10 +++ exited with 0 +++
`
	if got := countReads([]byte(text)); got != 3 {
		t.Errorf("counted %d reads, want 3", got)
	}
}

func TestCountMarks(t *testing.T) {
	for text, want := range map[string]int{
		"pos:\t0\nflags:\t02\nfanotify flags:801 event-flags:0\nfanotify sdev:23 mflags:0 mask:fc6 ignored_mask:0\n":      1,
		"pos:\t0\ninotify wd:2 ino:5 sdev:23 mask:fc6 ignored_mask:0\ninotify wd:1 ino:4 sdev:23 mask:2 ignored_mask:0\n": 2,
		"pos:\t0\nflags:\t02\n": 0,
	} {
		if got := countMarks([]byte(text)); got != want {
			t.Errorf("counted %d marks, want %d in\n%s", got, want, text)
		}
	}
}

func TestPercentile(t *testing.T) {
	var d []time.Duration
	for i := range 100 {
		d = append(d, time.Duration(99-i))
	}
	for p, want := range map[int]time.Duration{0: 0, 50: 50, 99: 99, 100: 99} {
		if got := percentile(slices.Clone(d), p); got != want {
			t.Errorf("percentile %d: got %d, want %d", p, got, want)
		}
	}
	if got := median(nil); got != 0 {
		t.Errorf("median of nothing: %d", got)
	}
}

func TestReport(t *testing.T) {
	var r report
	r.machine = "a machine"
	tab := r.add("A title", "job", "native", "heraldfs", "ratio", "target")
	tab.compared("walk", [][]time.Duration{{10 * time.Millisecond}, {12 * time.Millisecond}}, true)
	tab.note("a note")
	var md, text bytes.Buffer
	if err := errors.Join(r.markdown(&md), r.text(&text)); err != nil {
		t.Fatal(err)
	}
	const want = "a machine\n\n### A title\n\n| job | native | heraldfs | ratio | target |\n| --- | --- | --- | --- | --- |\n" +
		"| walk | 10.0 ms | 12.0 ms | 1.20 | 1.15: **missed** |\n\n- a note\n"
	if md.String() != want {
		t.Errorf("got\n%s\nwant\n%s", md.String(), want)
	}
	for _, s := range []string{"A title", "12.0 ms", "a note"} {
		if !strings.Contains(text.String(), s) {
			t.Errorf("%q is not in\n%s", s, text.String())
		}
	}
}

func TestTrees(t *testing.T) {
	b := &bench{ctx: context.Background()}
	dir := t.TempDir()
	if err := makeDirs(b, dir, 1500); err != nil {
		t.Fatal(err)
	}
	if n, _, err := lstatWalk(dir); err != nil || n != 1501 {
		t.Errorf("%d directories with the root, %v; want 1501", n, err)
	}
}

func TestDifferences(t *testing.T) {
	dirs := [2]string{t.TempDir(), t.TempDir()}
	old := time.Now().Add(-time.Hour)
	check := func(want int) {
		t.Helper()
		// The roots are made at different times; what is in them is the matter.
		for _, dir := range dirs {
			if err := os.Chtimes(dir, old, old); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := differences(dirs[0], dirs[1]); err != nil || got != want {
			t.Errorf("%d differences, %v; want %d", got, err, want)
		}
	}
	put := func(dir, name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o644), os.Chtimes(path, old, old)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range dirs {
		put(dir, "same", "text")
	}
	check(0)
	put(dirs[1], "same", "TEXT")
	check(1)
	put(dirs[0], "only-native", "")
	put(dirs[1], "only-other", "")
	check(3)
}

func TestUnwind(t *testing.T) {
	b := &bench{}
	var order []int
	failed := errors.New("failed")
	for i := range 3 {
		b.later(func() error {
			order = append(order, i)
			if i == 1 {
				return failed
			}
			return nil
		})
	}
	if err := b.unwind(1); !errors.Is(err, failed) {
		t.Errorf("got %v, want %v", err, failed)
	}
	if err := b.unwind(0); err != nil {
		t.Error(err)
	}
	if !slices.Equal(order, []int{2, 1, 0}) {
		t.Errorf("undone in the order %v", order)
	}
}
