package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// report is what a run has to tell.
type report struct {
	machine string
	tables  []*table
}

// table is one table of it; all rows are as long as the header.
type table struct {
	title  string
	header []string
	rows   [][]string
	notes  []string
}

func (r *report) add(title string, header ...string) *table {
	t := &table{title: title, header: header}
	r.tables = append(r.tables, t)
	return t
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) note(format string, args ...any) {
	t.notes = append(t.notes, fmt.Sprintf(format, args...))
}

func (r *report) text(w io.Writer) error {
	fmt.Fprintln(w, r.machine)
	for _, t := range r.tables {
		fmt.Fprintf(w, "\n%s\n", t.title)
		tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
		for _, row := range append([][]string{t.header}, t.rows...) {
			fmt.Fprintln(tw, "  "+strings.Join(row, "\t"))
		}
		if err := tw.Flush(); err != nil {
			return err
		}
		for _, n := range t.notes {
			fmt.Fprintln(w, "  * "+n)
		}
	}
	return nil
}

func (r *report) markdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintln(&b, r.machine)
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	for _, t := range r.tables {
		fmt.Fprintf(&b, "\n### %s\n\n", t.title)
		line(t.header)
		line(slices.Repeat([]string{"---"}, len(t.header)))
		for _, row := range t.rows {
			line(row)
		}
		if len(t.notes) > 0 {
			fmt.Fprintln(&b)
		}
		for _, n := range t.notes {
			fmt.Fprintln(&b, "- "+n)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// verdict says whether a target was met.
func verdict(ok bool) string {
	if ok {
		return "met"
	}
	return "**missed**"
}

// machine names the class of machine, not the machine.
func machine() string {
	release := "Linux"
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		release += " " + unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Sprintf("%d CPUs, %s, %s, everything on tmpfs", runtime.NumCPU(), release, runtime.Version())
}

// load is the load average of the last minute.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// percentile returns the p-th percentile and sorts d.
func percentile(d []time.Duration, p int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)*p/100, len(d)-1)]
}

func median(d []time.Duration) time.Duration { return percentile(slices.Clone(d), 50) }

// short writes a duration with three digits.
func short(d time.Duration) string {
	switch {
	case d < 10*time.Microsecond:
		return fmt.Sprintf("%.2f us", float64(d)/1e3)
	case d < time.Millisecond:
		return fmt.Sprintf("%.0f us", float64(d)/1e3)
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

func ratio(d, native time.Duration) float64 { return float64(d) / float64(max(native, 1)) }
