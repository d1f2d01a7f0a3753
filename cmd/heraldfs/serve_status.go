package main

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/heraldfs/heraldfs/internal/status"
	"github.com/heraldfs/heraldfs/server/stream"
)

// serveReport tells of a server, from before it listens.
type serveReport struct {
	started time.Time

	mu        sync.Mutex
	roots     []*servedRoot // whole
	servers   []*stream.Server
	listening []string
}

// watches says that the roots have their streams and sources.
func (r *serveReport) watches(roots []*servedRoot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.roots = roots
}

// listens says that nothing is missed any more and subscribers may come.
func (r *serveReport) listens(s *stream.Server, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.servers = append(r.servers, s)
	r.listening = append(r.listening, name)
}

func (r *serveReport) status() *status.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := newStatus(status.Serve, r.started)
	s.Listening = slices.Clone(r.listening)
	s.Healthy = len(r.servers) > 0
	if !s.Healthy {
		s.Reason = "the watching is being set up"
	}
	for _, root := range r.roots {
		s.Roots = append(s.Roots, root.status())
	}
	for _, server := range r.servers {
		for reason, n := range server.Refused() {
			if s.Refused == nil {
				s.Refused = make(map[string]uint64)
			}
			s.Refused[reason] += n
		}
	}
	return s
}

func (r *servedRoot) status() status.Root {
	from := r.stream.Stats()
	names, _ := r.source.tree.Backends()
	out := status.Root{
		Name: r.name, Dir: r.dir, Watcher: strings.Join(names, ", "), Stream: hex.EncodeToString(r.stream.ID()),
		Events: named(from.Events), Losses: named(from.Losses), Gaps: named(from.Gaps),
		Journal: status.Journal{
			Events: from.Head + 1 - from.First, Bytes: from.JournalBytes, First: from.First, Last: from.Head,
			Dir: r.journal, Failed: from.DiskFailed,
		},
		Subscriptions: from.Subscriptions, Resumed: from.Resumes, BacklogBytes: from.BacklogBytes,
		Connected: len(from.Subscribers),
	}
	slices.SortFunc(from.Subscribers, func(a, b stream.Subscriber) int {
		return cmp.Or(cmp.Compare(b.Behind, a.Behind), cmp.Compare(a.Peer, b.Peer))
	})
	for _, sub := range from.Subscribers[:min(len(from.Subscribers), status.MaxSubscribers)] {
		out.Subscribers = append(out.Subscribers, status.Subscriber{Peer: sub.Peer, Agent: sub.Agent, Behind: sub.Behind})
	}
	return out
}

// named gives counters their names.
func named[K interface {
	comparable
	fmt.Stringer
}](from map[K]uint64) map[string]uint64 {
	m := make(map[string]uint64, len(from))
	for k, n := range from {
		m[k.String()] = n
	}
	return m
}
