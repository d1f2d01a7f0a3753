//go:build linux

package main

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/heraldfs/heraldfs/internal/status"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/replay"
	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/client"
	"github.com/heraldfs/heraldfs/server/guest"
	"github.com/heraldfs/heraldfs/watcher"
)

// stuckAfter is how long one step of the replay may take in a healthy mount.
const stuckAfter = 10 * time.Second

// mountReport tells of a mount, from before it is there.
type mountReport struct {
	started    time.Time
	src, point string
	backend    string // set before guest is
	// upstream counts what comes from the server at url; nil without one. Both are set before guest is.
	upstream *client.Stats
	url      string
	guest    atomic.Pointer[guest.Guest]
}

// mounted says that there is a mount now, whose root tells of itself.
func (m *mountReport) mounted(g *guest.Guest, events notify.Source) {
	if m.upstream == nil {
		m.backend = "off"
	}
	if w, ok := events.(*watcher.Watcher); ok {
		m.backend = w.Backend
	}
	m.guest.Store(g)
	g.SetStatus(func() []byte { return m.status().JSON() })
}

func (m *mountReport) status() *status.Status {
	s := newStatus(status.Mount, m.started)
	s.Source, s.Mountpoint = m.src, m.point
	g := m.guest.Load()
	if g == nil {
		s.Reason = "not mounted yet"
		return s
	}
	s.Watcher, s.Requests, s.PassedOpens = m.backend, g.Requests(), g.Passed()
	s.Pruned = g.Pruned()
	s.Transport = "device"
	if g.OverIOURing() {
		s.Transport = "io_uring"
	}
	stats := g.Stats()
	select {
	case <-g.Ready():
		s.Healthy = true
	default:
		s.Reason = "the mount is being set up"
	}
	if stuck := stats.Stuck(time.Now()); stuck > stuckAfter {
		s.Healthy, s.Reason = false, fmt.Sprintf("the replay has been busy with one event for %s", stuck.Round(time.Second))
	}
	if m.upstream != nil {
		s.Upstream = upstreamStatus(m.upstream, m.url)
		if !s.Upstream.Connected && s.Healthy {
			s.Healthy, s.Reason = false, "no connection to "+m.url+": "+s.Upstream.LastError
		}
	}
	if m.backend != "off" {
		s.Replay = replayStatus(stats, g.Known())
	}
	return s
}

func replayStatus(from *replay.Stats, known int) *status.Replay {
	r := &status.Replay{
		Events:   make(map[string]uint64),
		Replayed: from.Replayed.Load(), Dropped: from.Dropped.Load(), Masked: from.Masked.Load(),
		Echoes: from.Echoes.Load(), Late: from.Late.Load(),
		Skipped: from.Skipped.Load(), Fallbacks: from.Fallbacks.Load(), Retries: from.Retries.Load(),
		Unexpected: from.Unexpected.Load(), Overflows: from.Overflows.Load(), Reconciled: from.Reconciled.Load(),
		Backlog: from.Backlog.Load(), KnownInodes: known, LastProblem: from.LastProblem(),
	}
	for op := notify.OpCreate; int(op) < len(from.Heard); op++ {
		r.Events[op.String()] = from.Heard[op].Load()
	}
	bounds, counts, count, sum := from.Delay.Snapshot()
	r.Delay = status.Delay{Count: count, Sum: sum.Seconds()}
	for i := range bounds {
		r.Delay.Buckets = append(r.Delay.Buckets, status.Bucket{LE: bounds[i].Seconds(), Count: counts[i]})
	}
	return r
}

func upstreamStatus(from *client.Stats, url string) *status.Upstream {
	u := &status.Upstream{
		URL: url, Connected: from.Connected.Load(), Connects: from.Connects.Load(), Failures: from.Failures.Load(),
		Events: from.Events.Load(), Gaps: make(map[string]uint64), Last: from.Last.Load(),
	}
	for r := protocol.GapOverflow; int(r) < len(from.Gaps); r++ {
		u.Gaps[r.String()] = from.Gaps[r].Load()
	}
	if !u.Connected {
		u.LastError = from.LastError()
	}
	return u
}
