package inotest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/heraldfs/heraldfs/notify"
)

// Record is one event.
type Record struct {
	// Label is that of the watch, or "?" for an overflow.
	Label string
	Mask  notify.Mask
	Name  string
	// Cookie numbers the renames of a recording from 1.
	Cookie uint32
	// At is when it was read. It is not compared.
	At time.Time
}

func (r Record) String() string {
	s := fmt.Sprintf("%s %v %q", r.Label, r.Mask, r.Name)
	if r.Cookie != 0 {
		s += fmt.Sprintf(" cookie %d", r.Cookie)
	}
	return s
}

// Format writes records one a line.
func Format(records []Record) string {
	var b strings.Builder
	for _, r := range records {
		fmt.Fprintf(&b, "\t%v\n", r)
	}
	return b.String()
}

// Fold leaves out each record that repeats the one before it, as inotify does when it
// is not read in between.
func Fold(records []Record) []Record {
	return slices.CompactFunc(slices.Clone(records), func(a, b Record) bool {
		a.At, b.At = time.Time{}, time.Time{}
		return a == b
	})
}

// FoldMoves leaves out what inotify may merge into the record before it although it tells of another
// rename: it compares mask, watch and name of the last record that is queued, but no cookies. That record
// is a half whose other half was not heard: else one of the two would have been queued in between. What
// is left of a rename after that reads as a move in or out.
func FoldMoves(records []Record) []Record {
	records = foldHalves(records, notify.MovedFrom, func(was, _ Record) Record { return was })
	return foldHalves(records, notify.MovedTo, func(_, r Record) Record { return r })
}

// foldHalves leaves out halves that repeat the one before them, if the one of the two that single chooses
// has no other half.
func foldHalves(records []Record, half notify.Mask, single func(was, r Record) Record) []Record {
	mates := map[uint32]bool{}
	for _, r := range records {
		if r.Mask&notify.Moves&^half != 0 {
			mates[r.Cookie] = true
		}
	}
	last := map[string]Record{}
	return slices.DeleteFunc(slices.Clone(records), func(r Record) bool {
		was, known := last[r.Label]
		if known && r.Mask&half != 0 && was.Mask == r.Mask && was.Name == r.Name && !mates[single(was, r).Cookie] {
			return true
		}
		last[r.Label] = r
		return false
	})
}

// Lost reports whether the queue overflowed.
func Lost(records []Record) bool {
	return slices.ContainsFunc(records, func(r Record) bool { return r.Mask&notify.QOverflow != 0 })
}

// Compare returns what differs between two recordings of the same changes, directory
// by directory, or "". The first is what it should be.
func Compare(native, guest []Record) string {
	want, got := stories(native), stories(guest)
	labels := slices.Sorted(maps.Keys(want))
	for label := range got {
		if _, ok := want[label]; !ok {
			labels = append(labels, label)
		}
	}
	slices.Sort(labels)
	var b strings.Builder
	for _, label := range labels {
		if d := cmp.Diff(want[label], got[label]); d != "" {
			fmt.Fprintf(&b, "%s: native %d events (-), guest %d events (+)\n%s", label, len(want[label]), len(got[label]), d)
		}
	}
	return b.String()
}

// half is one side of a rename.
type half struct{ label, name string }

// stories tells what each label heard, one line an event.
func stories(records []Record) map[string][]string {
	from, to := map[uint32]half{}, map[uint32]half{}
	for _, r := range records {
		switch {
		case r.Cookie == 0:
		case r.Mask&notify.MovedFrom != 0:
			from[r.Cookie] = half{r.Label, r.Name}
		case r.Mask&notify.MovedTo != 0:
			to[r.Cookie] = half{r.Label, r.Name}
		}
	}
	out := map[string][]string{}
	for _, r := range records {
		line := fmt.Sprintf("%v %q", r.Mask, r.Name)
		switch {
		case r.Mask&notify.Moves == 0:
			if r.Cookie != 0 {
				line += " with a cookie"
			}
		case r.Cookie == 0:
			line += " without a cookie"
		case r.Mask&notify.MovedFrom != 0:
			line += " to " + where(to, r.Cookie)
		default:
			line += " from " + where(from, r.Cookie)
		}
		if lines := out[r.Label]; len(lines) == 0 || lines[len(lines)-1] != line || r.Mask&notify.Moves != 0 {
			out[r.Label] = append(lines, line)
		}
	}
	return out
}

func where(halves map[uint32]half, cookie uint32) string {
	h, ok := halves[cookie]
	if !ok {
		return "elsewhere"
	}
	return fmt.Sprintf("%s %q", h.label, h.name)
}

// recordsLocked makes records of events, without those of sentinels.
func (r *Recorder) recordsLocked(events []event) []Record {
	numbers := map[uint32]uint32{}
	var records []Record
	for _, ev := range events {
		if r.sentinels[ev.name] {
			continue
		}
		rec := Record{Label: "?", Mask: ev.mask, Name: ev.name, At: ev.at}
		if label, ok := r.labels[ev.wd]; ok {
			rec.Label = label
		}
		if ev.cookie != 0 {
			n, ok := numbers[ev.cookie]
			if !ok {
				n = uint32(len(numbers) + 1)
				numbers[ev.cookie] = n
			}
			rec.Cookie = n
		}
		records = append(records, rec)
	}
	return records
}
