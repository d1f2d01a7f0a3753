// Package status is what a running heraldfs tells of itself. The one document, made anew each time
// somebody asks, is the reply to `heraldfs status`, as JSON, and what the metrics are made of.
//
// It holds paths and the addresses of subscribers: it is for root and the user that the process runs
// as. The metrics have neither.
package status

import (
	"encoding/json"
	"fmt"
	"time"
)

// The kinds of process.
const (
	Mount    = "mount"
	Serve    = "serve"
	Virtiofs = "virtiofs"
)

// Status is the document. What a process does not have is left out. Counters are since its start.
type Status struct {
	Kind    string    `json:"kind"`
	Version string    `json:"version"`
	Pid     int       `json:"pid"`
	Started time.Time `json:"started"`
	// Healthy says that the process is ready and hears of changes; Reason why not.
	Healthy bool   `json:"healthy"`
	Reason  string `json:"reason,omitempty"`

	Source     string `json:"source,omitempty"`
	Mountpoint string `json:"mountpoint,omitempty"`
	// Watcher is the backend, and "off" for a mount without events.
	Watcher string `json:"watcher,omitempty"`

	Replay   *Replay   `json:"replay,omitempty"`
	Upstream *Upstream `json:"upstream,omitempty"`
	Machine  *Machine  `json:"machine,omitempty"`
	// Transport is how they come: "device" or "io_uring".
	Transport string `json:"fuse_transport,omitempty"`
	// Requests are FUSE requests by the kernel's name of the opcode.
	Requests map[string]uint64 `json:"fuse_requests,omitempty"`

	// PassedOpens are opens of files whose I/O the kernel does by itself.
	PassedOpens uint64 `json:"passthrough_opens,omitempty"`
	// Pruned are inodes that the guest's kernel was asked to let go of, and did.
	Pruned uint64 `json:"pruned_inodes,omitempty"`

	Roots []Root `json:"roots,omitempty"`
	// Listening are the URLs of a server; Refused counts connections that were refused, by reason.
	Listening []string          `json:"listening,omitempty"`
	Refused   map[string]uint64 `json:"refused_connections,omitempty"`
}

// Replay is what a mount has heard and made its guest hear.
type Replay struct {
	// Events were heard of, by operation.
	Events map[string]uint64 `json:"events"`
	// The events that the guest's watchers heard, and those that they did not: of what it does
	// not know, of no wanted kind, overtaken by itself.
	Replayed uint64 `json:"replayed"`
	Dropped  uint64 `json:"dropped"`
	Masked   uint64 `json:"masked"`
	Skipped  uint64 `json:"skipped"`
	// Echoes came from the server and were the guest's own; Late are those that went out before the share
	// showed them.
	Echoes uint64 `json:"echoes,omitempty"`
	Late   uint64 `json:"late,omitempty"`
	// Fallbacks could not be repeated; caches were dropped.
	Fallbacks  uint64 `json:"fallbacks"`
	Retries    uint64 `json:"retries"`
	Unexpected uint64 `json:"unexpected_requests"`
	// Overflows are losses, Reconciled what comparing made up for them.
	Overflows   uint64 `json:"overflows"`
	Reconciled  uint64 `json:"reconciled"`
	Backlog     int64  `json:"backlog_events"`
	KnownInodes int    `json:"known_inodes"`
	Delay       Delay  `json:"delay"`
	LastProblem string `json:"last_problem,omitempty"`
}

// Delay is a histogram of seconds.
type Delay struct {
	Count   uint64   `json:"count"`
	Sum     float64  `json:"sum_seconds"`
	Buckets []Bucket `json:"buckets,omitempty"`
}

// Bucket counts what took at most LE seconds.
type Bucket struct {
	LE    float64 `json:"le_seconds"`
	Count uint64  `json:"count"`
}

// Quantile returns the bound of the bucket that q of all are within; false if there is none.
func (d *Delay) Quantile(q float64) (float64, bool) {
	for _, b := range d.Buckets {
		if d.Count > 0 && float64(b.Count) >= q*float64(d.Count) {
			return b.LE, true
		}
	}
	return 0, false
}

// Upstream is the server that a mount has its events from.
type Upstream struct {
	URL       string            `json:"url"`
	Connected bool              `json:"connected"`
	Connects  uint64            `json:"connects"`
	Failures  uint64            `json:"failures"`
	Events    uint64            `json:"events"`
	Gaps      map[string]uint64 `json:"gaps,omitempty"`
	// Last is the last sequence that was dealt with.
	Last      uint64 `json:"last_sequence"`
	LastError string `json:"last_error,omitempty"`
}

// Machine is the virtual machine of a virtiofs back-end.
type Machine struct {
	Socket      string `json:"socket"`
	Connected   bool   `json:"connected"`
	Connections uint64 `json:"connections"`
	Errors      uint64 `json:"device_errors"`
}

// Root is one directory that a server tells of.
type Root struct {
	Name    string `json:"name"`
	Dir     string `json:"dir"`
	Watcher string `json:"watcher"`
	Stream  string `json:"stream"`
	// Events were published, by operation; Losses are records that something was lost, by reason.
	Events  map[string]uint64 `json:"events"`
	Losses  map[string]uint64 `json:"losses,omitempty"`
	Journal Journal           `json:"journal"`
	// Subscriptions were accepted; Resumed of them went on from a position.
	Subscriptions uint64 `json:"subscriptions"`
	Resumed       uint64 `json:"resumed"`
	// Gaps were sent to subscribers, by reason.
	Gaps         map[string]uint64 `json:"gaps,omitempty"`
	BacklogBytes int64             `json:"backlog_bytes"`
	Connected    int               `json:"subscribers_connected"`
	// Subscribers are those that are furthest behind, at most MaxSubscribers.
	Subscribers []Subscriber `json:"subscribers,omitempty"`
}

// MaxSubscribers bounds Root.Subscribers.
const MaxSubscribers = 32

// Journal is what a root's journal holds.
type Journal struct {
	Events uint64 `json:"events"`
	Bytes  int    `json:"bytes"`
	First  uint64 `json:"first_sequence"`
	Last   uint64 `json:"last_sequence"`
	// Dir is where it is on disk; Failed says that it is there no more, but in memory only.
	Dir    string `json:"dir,omitempty"`
	Failed bool   `json:"failed,omitempty"`
}

// Subscriber is one connection.
type Subscriber struct {
	Peer   string `json:"peer"`
	Agent  string `json:"agent"`
	Behind uint64 `json:"behind_events"`
}

// JSON is the document as it travels.
func (s *Status) JSON() []byte {
	b, err := json.Marshal(s)
	if err != nil {
		// A Status holds nothing that cannot be encoded.
		panic(fmt.Sprintf("encode status: %v", err))
	}
	return b
}

// Parse reads a document. One of another version may have more fields, or fewer.
func Parse(b []byte) (*Status, error) {
	var s Status
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	return &s, nil
}
