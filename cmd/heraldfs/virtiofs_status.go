//go:build linux

package main

import (
	"sync/atomic"
	"time"

	"github.com/heraldfs/heraldfs/internal/status"
	"github.com/heraldfs/heraldfs/server/opcount"
	"github.com/heraldfs/heraldfs/server/virtiofs"
)

// virtiofsReport tells of a virtiofs back-end, from before it listens.
type virtiofsReport struct {
	started     time.Time
	src, socket string
	requests    opcount.Counts
	ready       atomic.Bool
	connected   atomic.Bool
	// broken says that the device has stopped until the guest is reset or gone.
	broken              atomic.Pointer[string]
	connections, errors atomic.Uint64
}

// follow has the server tell r what happens to it.
func (r *virtiofsReport) follow(o *virtiofs.Options) {
	o.Requests = &r.requests
	o.OnConnect = func() {
		r.connected.Store(true)
		r.connections.Add(1)
	}
	o.OnDisconnect = func(error) {
		r.connected.Store(false)
		r.broken.Store(nil)
	}
	o.OnError = func(err error) {
		r.errors.Add(1)
		text := "the device has stopped until the guest is reset: " + err.Error()
		r.broken.Store(&text)
	}
}

func (r *virtiofsReport) status() *status.Status {
	s := newStatus(status.Virtiofs, r.started)
	s.Source, s.Requests = r.src, r.requests.Snapshot()
	s.Machine = &status.Machine{
		Socket: r.socket, Connected: r.connected.Load(), Connections: r.connections.Load(), Errors: r.errors.Load(),
	}
	switch why := r.broken.Load(); {
	case !r.ready.Load():
		s.Reason = "not ready yet"
	case why != nil:
		s.Reason = *why
	default:
		s.Healthy = true
	}
	return s
}
