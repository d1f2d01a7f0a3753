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
	// Sync is a directory of which an extended attribute, Attr, is read.
	Sync string `json:"sync,omitempty"`
	Attr string `json:"attr,omitempty"`
	// Look are paths to look at, after Sync if there is one; the answer has as many Looks.
	Look []string `json:"look,omitempty"`
}

// Look is what there is at a path.
type Look struct {
	// Mode is st_mode, zero if there is nothing.
	Mode    uint32 `json:"mode,omitempty"`
	Nlink   uint64 `json:"nlink,omitempty"`
	Content []byte `json:"content,omitempty"`
	// Target is a symbolic link's.
	Target string `json:"target,omitempty"`
	// Error is what went wrong, but for ENOENT.
	Error string `json:"error,omitempty"`
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
	Looks  []Look  `json:"looks,omitempty"`
}

// Event is one inotify event.
type Event struct {
	// Dir is the watched directory as it was named in the request.
	Dir    string `json:"dir"`
	Mask   uint32 `json:"mask"`
	Cookie uint32 `json:"cookie,omitempty"`
	Name   []byte `json:"name,omitempty"`
}
