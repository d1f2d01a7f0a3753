// Package wire is what vmtest and its helper in the guest say to each other: one
// JSON object per line, in both directions, over a virtio-serial port.
package wire

// PortName is the name of the port, as in /sys/class/virtio-ports/*/name.
const PortName = "org.heraldfs.vmtest"

// Request asks the guest to do something.
type Request struct {
	ID uint64 `json:"id"`
	// Argv is a command to run, with Stdin, for at most Seconds.
	Argv    []string `json:"argv,omitempty"`
	Stdin   []byte   `json:"stdin,omitempty"`
	Seconds float64  `json:"seconds,omitempty"`
	// Watch are directories to watch with inotify, for Mask. Events come with the
	// request's ID until Unwatch names it.
	Watch   []string `json:"watch,omitempty"`
	Mask    uint32   `json:"mask,omitempty"`
	Unwatch uint64   `json:"unwatch,omitempty"`
}

// Message is an answer, or an unasked word of the guest.
type Message struct {
	// Hello is the boot id of a guest that has just started.
	Hello string `json:"hello,omitempty"`
	ID    uint64 `json:"id,omitempty"`
	// Done ends the request ID.
	Done   bool    `json:"done,omitempty"`
	Error  string  `json:"error,omitempty"`
	Output []byte  `json:"output,omitempty"`
	Exit   int     `json:"exit,omitempty"`
	Events []Event `json:"events,omitempty"`
}

// Event is one inotify event.
type Event struct {
	// Dir is the watched directory as it was named in the request.
	Dir    string `json:"dir"`
	Mask   uint32 `json:"mask"`
	Cookie uint32 `json:"cookie,omitempty"`
	Name   []byte `json:"name,omitempty"`
}
