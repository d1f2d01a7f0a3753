package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/heraldfs/heraldfs/internal/status"
)

// collector makes metrics of a status.
type collector struct {
	describe func() *status.Status
	descs    map[string]*prometheus.Desc
}

// desc is a metric's name without prefix, its labels and its help.
type desc struct {
	name   string
	labels []string
	help   string
}

// descs are all metrics. docs/operations.md lists them too.
func descs() []desc {
	root, rootReason := []string{"root"}, []string{"root", "reason"}
	return []desc{
		{"build_info", []string{"kind", "version"}, "1, with what runs and its version."},
		{"start_time_seconds", nil, "When the process started, in seconds since 1970."},
		{"healthy", nil, "1 if the process is ready and hears of changes, as /healthz says."},

		{"events_total", []string{"op"}, "Changes on the file system of SOURCE that were heard of, by operation."},
		{"replay_events_total", nil, "Changes that were repeated in the mount, so that watchers there heard them."},
		{"replay_dropped_events_total", nil, "Changes of what the guest does not know, which nobody there can watch."},
		{"replay_masked_events_total", nil, "Changes that --mask leaves out; only caches were dropped."},
		{"replay_skipped_events_total", nil, "Changes that a later one by the guest itself had overtaken."},
		{"replay_echoes_total", nil, "Changes told by the server that the guest had made itself."},
		{"replay_late_events_total", nil, "Changes that were told before the share showed them."},
		{"replay_fallbacks_total", nil, "Changes that could not be repeated; only caches were dropped."},
		{"replay_retries_total", nil, "System calls of the replay that were made again because the guest's kernel was ahead."},
		{"replay_unexpected_requests_total", nil, "Requests of the replay that it did not expect: a bug in heraldfs."},
		{"replay_overflows_total", nil, "How often the kernel dropped events, so that the guest's view was compared with SOURCE."},
		{"replay_reconciled_events_total", nil, "Events that were made up by comparing."},
		{"replay_backlog_events", nil, "Changes that were heard of and wait to be repeated."},
		{"replay_delay_seconds", nil, "From reading a change to the end of its repetition in the mount, in seconds."},
		{"known_inodes", nil, "Files and directories that the guest's kernel holds a reference to."},
		{"fuse_requests_total", []string{"opcode"}, "FUSE requests, by the kernel's name of the opcode."},

		{"upstream_connected", nil, "1 if the server that the events come from is connected."},
		{"upstream_connects_total", nil, "Connections to it that got as far as a subscription; all but the first are reconnects."},
		{"upstream_failures_total", nil, "Connections to it that ended or could not be made."},
		{"upstream_events_total", nil, "Events received from it."},
		{"upstream_gaps_total", []string{"reason"}, "Gaps that it told of, by reason."},
		{"upstream_last_sequence", nil, "The last sequence that was dealt with."},

		{"machine_connected", nil, "1 if a virtual machine monitor is connected."},
		{"machine_connections_total", nil, "Connections of virtual machine monitors."},
		{"machine_errors_total", nil, "How often the device stopped because of what the guest or its monitor did."},

		{"stream_events_total", []string{"root", "op"}, "Changes below a root that were numbered and kept, by operation."},
		{"stream_losses_total", rootReason, "Losses below a root that were numbered as such, by reason; overflow is the kernel's."},
		{"stream_journal_events", root, "Changes and losses that the journal holds."},
		{"stream_journal_bytes", root, "Memory that the journal takes, in bytes."},
		{"stream_journal_first_sequence", root, "The oldest sequence that the journal holds."},
		{"stream_journal_last_sequence", root, "The last sequence that was given out."},
		{"stream_journal_on_disk", root, "1 if the journal is kept on disk, 0 if in memory only, by wish or after an error."},
		{"stream_subscribers", root, "Subscribers that are connected."},
		{"stream_subscriptions_total", root, "Subscriptions that were accepted."},
		{"stream_resumes_total", root, "Those of them that went on from a position: reconnects."},
		{"stream_gaps_total", rootReason, "Gaps that subscribers were told of, by reason."},
		{"stream_backlog_bytes", root, "What is kept for subscribers that have fallen behind the journal, in bytes."},
		{"stream_behind_max_events", root, "How many changes the slowest subscriber has not been read for."},
		{"refused_connections_total", []string{"reason"}, "Connections that were refused, by reason."},
	}
}

func newCollector(describe func() *status.Status) *collector {
	c := &collector{describe: describe, descs: make(map[string]*prometheus.Desc)}
	for _, d := range descs() {
		c.descs[d.name] = prometheus.NewDesc("heraldfs_"+d.name, d.help, d.labels, nil)
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

// sink emits metrics of one status.
type sink struct {
	c  *collector
	ch chan<- prometheus.Metric
}

func (s sink) put(t prometheus.ValueType, name string, v float64, labels ...string) {
	s.ch <- prometheus.MustNewConstMetric(s.c.descs[name], t, v, labels...)
}

func (s sink) gauge(name string, v float64, labels ...string) {
	s.put(prometheus.GaugeValue, name, v, labels...)
}

func (s sink) counter(name string, n uint64, labels ...string) {
	s.put(prometheus.CounterValue, name, float64(n), labels...)
}

// by emits a counter for each key, which becomes the last label.
func (s sink) by(name string, m map[string]uint64, labels ...string) {
	for key, n := range m {
		s.counter(name, n, append(labels[:len(labels):len(labels)], key)...)
	}
}

func number(ok bool) float64 {
	if ok {
		return 1
	}
	return 0
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	st, s := c.describe(), sink{c, ch}
	s.gauge("build_info", 1, st.Kind, st.Version)
	s.gauge("start_time_seconds", float64(st.Started.UnixMilli())/1000)
	s.gauge("healthy", number(st.Healthy))
	if st.Replay != nil {
		s.replay(st.Replay)
	}
	if st.Upstream != nil {
		s.upstream(st.Upstream)
	}
	if m := st.Machine; m != nil {
		s.gauge("machine_connected", number(m.Connected))
		s.counter("machine_connections_total", m.Connections)
		s.counter("machine_errors_total", m.Errors)
	}
	s.by("fuse_requests_total", st.Requests)
	for i := range st.Roots {
		s.root(&st.Roots[i])
	}
	s.by("refused_connections_total", st.Refused)
}

func (s sink) replay(r *status.Replay) {
	s.by("events_total", r.Events)
	s.counter("replay_events_total", r.Replayed)
	s.counter("replay_dropped_events_total", r.Dropped)
	s.counter("replay_masked_events_total", r.Masked)
	s.counter("replay_skipped_events_total", r.Skipped)
	s.counter("replay_echoes_total", r.Echoes)
	s.counter("replay_late_events_total", r.Late)
	s.counter("replay_fallbacks_total", r.Fallbacks)
	s.counter("replay_retries_total", r.Retries)
	s.counter("replay_unexpected_requests_total", r.Unexpected)
	s.counter("replay_overflows_total", r.Overflows)
	s.counter("replay_reconciled_events_total", r.Reconciled)
	s.gauge("replay_backlog_events", float64(r.Backlog))
	s.gauge("known_inodes", float64(r.KnownInodes))
	buckets := make(map[float64]uint64, len(r.Delay.Buckets))
	for _, b := range r.Delay.Buckets {
		buckets[b.LE] = b.Count
	}
	s.ch <- prometheus.MustNewConstHistogram(s.c.descs["replay_delay_seconds"], r.Delay.Count, r.Delay.Sum, buckets)
}

func (s sink) upstream(u *status.Upstream) {
	s.gauge("upstream_connected", number(u.Connected))
	s.counter("upstream_connects_total", u.Connects)
	s.counter("upstream_failures_total", u.Failures)
	s.counter("upstream_events_total", u.Events)
	s.by("upstream_gaps_total", u.Gaps)
	s.gauge("upstream_last_sequence", float64(u.Last))
}

func (s sink) root(r *status.Root) {
	s.by("stream_events_total", r.Events, r.Name)
	s.by("stream_losses_total", r.Losses, r.Name)
	j := &r.Journal
	s.gauge("stream_journal_events", float64(j.Events), r.Name)
	s.gauge("stream_journal_bytes", float64(j.Bytes), r.Name)
	s.gauge("stream_journal_first_sequence", float64(j.First), r.Name)
	s.gauge("stream_journal_last_sequence", float64(j.Last), r.Name)
	s.gauge("stream_journal_on_disk", number(j.Dir != "" && !j.Failed), r.Name)
	s.gauge("stream_subscribers", float64(r.Connected), r.Name)
	s.counter("stream_subscriptions_total", r.Subscriptions, r.Name)
	s.counter("stream_resumes_total", r.Resumed, r.Name)
	s.by("stream_gaps_total", r.Gaps, r.Name)
	s.gauge("stream_backlog_bytes", float64(r.BacklogBytes), r.Name)
	behind := uint64(0)
	for _, sub := range r.Subscribers {
		behind = max(behind, sub.Behind)
	}
	s.gauge("stream_behind_max_events", float64(behind), r.Name)
}
