package status

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Text writes the document as a table for people. now is for how long ago things were.
func (s *Status) Text(w io.Writer, now time.Time) error {
	var b bytes.Buffer
	t := &table{tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)}
	s.head(t, now)
	if r := s.Replay; r != nil {
		r.text(t)
	}
	if u := s.Upstream; u != nil {
		u.text(t)
	}
	if m := s.Machine; m != nil {
		t.row("machine", "%s at %s, %d connections, %d device errors", choose(m.Connected, "connected", "not connected"), m.Socket, m.Connections, m.Errors)
	}
	if len(s.Requests) > 0 {
		t.row("requests", "%s%s", counts(s.Requests), choose(s.Transport == "io_uring", ", over io_uring", ""))
	}
	if s.PassedOpens > 0 {
		t.row("passthrough", "%d opens", s.PassedOpens)
	}
	if s.Pruned > 0 {
		t.row("pruned", "%d inodes", s.Pruned)
	}
	for i := range s.Roots {
		s.Roots[i].text(t)
	}
	if len(s.Refused) > 0 {
		t.row("refused", "%s", counts(s.Refused))
	}
	if err := t.w.Flush(); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

type table struct{ w *tabwriter.Writer }

// row writes one line. Control characters of a name or a peer do not reach the terminal.
func (t *table) row(name, format string, args ...any) {
	fmt.Fprintf(t.w, "%s\t%s\n", plain(name), plain(fmt.Sprintf(format, args...)))
}

func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

func (s *Status) head(t *table, now time.Time) {
	t.row("state", "%s", choose(s.Healthy, "healthy", "NOT HEALTHY: "+s.Reason))
	up := now.Sub(s.Started).Round(time.Second)
	t.row("process", "heraldfs %s, version %s, pid %d, up %s", s.Kind, s.Version, s.Pid, max(up, 0))
	if s.Source != "" {
		t.row("source", "%s", s.Source)
	}
	if s.Mountpoint != "" {
		t.row("mounted on", "%s", s.Mountpoint)
	}
	if s.Watcher != "" {
		t.row("watcher", "%s", s.Watcher)
	}
	if len(s.Listening) > 0 {
		t.row("listening", "%s", strings.Join(s.Listening, " "))
	}
}

func (r *Replay) text(t *table) {
	t.row("heard", "%s", counts(r.Events))
	t.row("replayed", "%d; not told to the guest: %d unknown to it, %d masked, %d overtaken", r.Replayed, r.Dropped, r.Masked, r.Skipped)
	t.row("backlog", "%d events", r.Backlog)
	if p50, ok := r.Delay.Quantile(0.5); ok {
		p99 := "more than 10s"
		if v, ok := r.Delay.Quantile(0.99); ok {
			p99 = "at most " + seconds(v)
		}
		t.row("delay", "half at most %s, 99%% %s", seconds(p50), p99)
	}
	t.row("losses", "%d overflows, %d events made up by comparing", r.Overflows, r.Reconciled)
	t.row("trouble", "%d fallbacks, %d retries, %d unexpected requests", r.Fallbacks, r.Retries, r.Unexpected)
	if r.Echoes+r.Late > 0 {
		t.row("share", "%d events were the guest's own, %d went out ahead of their content", r.Echoes, r.Late)
	}
	if r.LastProblem != "" {
		t.row("last problem", "%s", r.LastProblem)
	}
	t.row("known inodes", "%d", r.KnownInodes)
}

func (u *Upstream) text(t *table) {
	t.row("events from", "%s", u.URL)
	t.row("connection", "%s; made %d times, lost or failed %d times", choose(u.Connected, "stands", "NOT CONNECTED"), u.Connects, u.Failures)
	t.row("received", "%d events, up to %d; gaps: %s", u.Events, u.Last, counts(u.Gaps))
	if u.LastError != "" {
		t.row("last error", "%s", u.LastError)
	}
}

func (r *Root) text(t *table) {
	t.row("root", "%s: %s (%s)", choose(r.Name == "", "(default)", r.Name), r.Dir, r.Watcher)
	t.row("  events", "%s", counts(r.Events))
	if len(r.Losses) > 0 {
		t.row("  losses", "%s", counts(r.Losses))
	}
	where := "in memory"
	switch j := &r.Journal; {
	case j.Failed:
		where = "IN MEMORY ONLY: " + j.Dir + " could not be written"
	case j.Dir != "":
		where = "in " + j.Dir
	}
	t.row("  journal", "%d events (%d to %d), %s, %s", r.Journal.Events, r.Journal.First, r.Journal.Last, size(int64(r.Journal.Bytes)), where)
	t.row("  subscribers", "%d connected, %d so far, %d of them went on from a position", r.Connected, r.Subscriptions, r.Resumed)
	t.row("  gaps", "%s", counts(r.Gaps))
	t.row("  backlog", "%s", size(r.BacklogBytes))
	for _, s := range r.Subscribers {
		t.row("  - "+choose(s.Peer == "" || s.Peer == "@", "(local)", s.Peer), "%s, %d events behind", s.Agent, s.Behind)
	}
	if n := r.Connected - len(r.Subscribers); n > 0 && len(r.Subscribers) > 0 {
		t.row("  -", "and %d that are less behind", n)
	}
}

// counts lists the counters that are not zero, the largest first.
func counts(m map[string]uint64) string {
	keys := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(m[b], m[a]), cmp.Compare(a, b))
	})
	var parts []string
	for _, k := range keys {
		if m[k] > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", k, m[k]))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

func seconds(v float64) string { return time.Duration(math.Round(v * float64(time.Second))).String() }

func size(n int64) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d bytes", n)
}

func choose(ok bool, yes, no string) string {
	if ok {
		return yes
	}
	return no
}
