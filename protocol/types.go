package protocol

import (
	"fmt"
	"time"

	"github.com/heraldfs/heraldfs/notify"
)

// The protocol versions that this package speaks.
const (
	Version    = 1
	MinVersion = 1
)

// Magic begins every Hello, so that a stray connection is told apart at once.
const Magic = "heraldfs"

// Limits of what is sent and accepted.
const (
	// MaxFrame bounds the payload of a frame in bytes.
	MaxFrame = 1 << 20
	// MaxHelloFrame bounds it before the handshake is done.
	MaxHelloFrame = 4 << 10
	// MaxSubscriberFrame bounds what a server takes after the handshake.
	MaxSubscriberFrame = 32 << 10
	// MaxBatch bounds the events of one Events message.
	MaxBatch = 4096
	// MaxPath bounds a directory's path in bytes.
	MaxPath = 64 << 10
	// MaxName bounds a name in bytes.
	MaxName = 1 << 10
	// MaxGlobs bounds the patterns of one list in a Subscribe.
	MaxGlobs = 32
	// MaxGlob bounds one pattern in bytes.
	MaxGlob = 256
	// MaxWindow bounds Subscribe.Window.
	MaxWindow = 1 << 10
	// MaxOrigin bounds Event.Origin in bytes.
	MaxOrigin = 255
	// MaxText bounds a text for people in bytes.
	MaxText = 1 << 10
	// MaxStatus bounds a Status in bytes.
	MaxStatus = 512 << 10
)

// Type is a message's number on the wire.
type Type uint8

// The message types.
const (
	TypeHello      Type = 1
	TypeAuth       Type = 2
	TypeSubscribe  Type = 3
	TypeSubscribed Type = 4
	TypeEvents     Type = 5
	TypeAck        Type = 6
	TypePing       Type = 7
	TypePong       Type = 8
	TypeGap        Type = 9
	TypeError      Type = 10
	TypeInquire    Type = 11
	TypeStatus     Type = 12
	TypeAttach     Type = 13
	TypeCalls      Type = 14
	TypeResults    Type = 15
	TypeHail       Type = 16
)

// The capabilities.
const (
	// CapState: the subscriber wants Event.FromState and ToState.
	CapState = "state"
	// CapBarrier: the server answers Ping.Sync.
	CapBarrier = "barrier"
	// CapStatus: the server answers Inquire.
	CapStatus = "status"
)

// Op is an event's operation on the wire.
type Op uint8

// The operations. A number is never given a second meaning; a peer ignores the
// events whose operation it does not know.
const (
	OpCreate       Op = 1
	OpDelete       Op = 2
	OpRename       Op = 3
	OpExchange     Op = 4
	OpModify       Op = 5
	OpAttrib       Op = 6
	OpOpen         Op = 7
	OpCloseWrite   Op = 8
	OpCloseNowrite Op = 9
	OpAccess       Op = 10
)

var ops = [...]notify.Op{
	OpCreate: notify.OpCreate, OpDelete: notify.OpDelete, OpRename: notify.OpRename,
	OpExchange: notify.OpExchange, OpModify: notify.OpModify, OpAttrib: notify.OpAttrib,
	OpOpen: notify.OpOpen, OpCloseWrite: notify.OpCloseWrite,
	OpCloseNowrite: notify.OpCloseNowrite, OpAccess: notify.OpAccess,
}

// Known reports whether this package knows the operation.
func (o Op) Known() bool { return o >= OpCreate && int(o) < len(ops) }

// Notify is the operation as the rest of heraldfs calls it, 0 for an unknown one.
func (o Op) Notify() notify.Op {
	if !o.Known() {
		return 0
	}
	return ops[o]
}

// OpOf is the operation's number on the wire, 0 if it has none.
func OpOf(op notify.Op) Op {
	for o := OpCreate; int(o) < len(ops); o++ {
		if ops[o] == op {
			return o
		}
	}
	return 0
}

func (o Op) String() string {
	if o.Known() {
		return ops[o].String()
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Place is a directory entry below the root. The zero Place is the placeholder for
// an unknown one: outside the root, or not told by the host's kernel.
type Place struct {
	// Dir is the directory's path from the root, without slashes at its ends; ""
	// is the root.
	Dir string
	// Name is the entry's name, never empty; "." with Dir "" is the root itself.
	Name string
}

// Known reports whether the place is not the placeholder.
func (p Place) Known() bool { return p.Name != "" }

// Path is Dir and Name joined, "" for the placeholder.
func (p Place) Path() string {
	if p.Dir == "" {
		return p.Name
	}
	return p.Dir + "/" + p.Name
}

// Event is one change. Fields that the host does not know are zero.
type Event struct {
	Seq   uint64    // "s": its sequence number
	Time  time.Time // "t": when the host heard of it, in nanoseconds since 1970
	Op    Op        // "o"
	IsDir bool      // "d"
	From  Place     // "f": the entry, and for a rename where it was
	To    Place     // "to": where a rename went, or an exchange's other side
	// Cookie ("c") joins a rename's halves for consumers that think in inotify's pairs.
	Cookie uint32
	Pid    int32    // "p": the thread group that did it, on the host
	Object Identity // "id"
	// Dir ("dfid") is From's directory, NewDir ("nfid") To's.
	Dir    Identity
	NewDir Identity
	// Other ("oid") is an exchange's other object, which was at To, and OtherIsDir
	// ("od") whether it is a directory.
	Other      Identity
	OtherIsDir bool
	// Verify ("v") says that the host may have merged later changes of the same names
	// into this event.
	Verify bool
	// Found ("u") says that no event of the host told this: the server found it by comparing, to
	// make up for what a merge can have hidden, or by listing a new directory.
	Found bool
	// Origin ("origin") is the name that the server gives to the process that did it.
	Origin string
	// FromState ("st") and ToState ("ts") are what the places showed on the host when
	// the event was sent.
	FromState State
	ToState   State
}

// State is what a place showed at some time, for a receiver that sees the same directory
// through a cache and wants to know when that has caught up. The zero State is not known.
type State struct {
	Known bool
	// Exists: the fields below count.
	Exists bool
	Ino    uint64
	Size   uint64
	Mtime  int64 // nanoseconds since 1970
	Ctime  int64
	// Same says that it was still the object that the event is about.
	Same bool
}

// Identity names a file system object of the host for its whole life. It is
// comparable. A peer cannot make one up: see Sealer.
type Identity struct {
	FS     uint64
	Type   int32
	Handle string
	MAC    [MACSize]byte
}

// IsZero reports whether the object is not known.
func (i Identity) IsZero() bool { return i.Handle == "" }

// Message is one of the pointers to the types below.
type Message interface {
	Type() Type
}

// Hello opens a connection, the client's first. The server's answer holds the
// version it chose and the capabilities that both have.
type Hello struct {
	Version    uint32   // "v": highest version spoken, or the version chosen
	MinVersion uint32   // "min": lowest version spoken
	Caps       []string // "caps"
	Agent      string   // "agent": program and version, for logs
	Nonce      []byte   // "nonce": 32 random bytes
	// Auth ("auth") is the server's wish for an Auth message, Proof ("proof") its
	// own proof that it knows the token.
	Auth  bool
	Proof []byte
}

// Auth proves that the client knows the token.
type Auth struct {
	Proof []byte // "proof": 32 bytes
}

// Compaction says what may be folded away before it is sent.
type Compaction uint8

// The choices of a subscriber.
const (
	// CompactBehind folds the backlog of a subscriber that has fallen behind.
	CompactBehind Compaction = 0
	// CompactNever folds nothing: who falls behind too far gets a Gap.
	CompactNever Compaction = 1
	// CompactAlways folds even what is sent at once.
	CompactAlways Compaction = 2
)

// Subscribe asks for a root's events.
type Subscribe struct {
	Root string      // "root": its name; "" is the server's default
	Mask notify.Mask // "mask": 0 is notify.DefaultMask
	// Include and Exclude ("inc", "exc") are globs over the path from the root; an
	// empty Include is everything.
	Include []string
	Exclude []string
	// Resume says that From ("from") is the last sequence seen, and Stream ("stream")
	// the stream that it belongs to; an empty Stream stands for whatever the server has.
	Resume  bool
	From    uint64
	Stream  []byte
	Compact Compaction // "compact"
	// Window ("win") is how many Events and Gap messages may be on the way without
	// an Ack; 0 is DefaultWindow.
	Window uint32
	// Origin ("origin") is the name that the server gives to the file server behind which the subscriber is; one that
	// it does not know is refused with CodeNoOrigin. Empty: none.
	Origin string
}

// DefaultWindow is what a Window of zero means.
const DefaultWindow = 32

// Subscribed answers Subscribe.
type Subscribed struct {
	Root   string   // "root"
	Stream []byte   // "stream": 16 bytes; another one means another numbering
	Next   uint64   // "next": where the first range that follows begins
	Head   uint64   // "head": the last sequence that exists
	Object Identity // "id": of the root's directory
	// Note ("note") is what the subscriber's user should know, for a log; mostly empty.
	Note string
}

// Events are changes in the order of their sequence, and the range that they
// stand for.
type Events struct {
	First  uint64 // "first"
	Last   uint64 // "last": First-1 if the range is empty
	Events []Event
	// Raw, if set, is sent instead of Events: each element is what AppendEvent made.
	Raw [][]byte
	// Skipped counts the events that were left out because their operation is
	// unknown. It is not sent.
	Skipped int
}

// Ack tells the server that everything up to Seq has been dealt with.
type Ack struct {
	Seq uint64 // "seq"
}

// Ping asks for a Pong with the same ID.
type Ping struct {
	ID uint64 // "id"
	// Sync ("sync") asks the server, if it has CapBarrier, to answer when every change that was
	// made before has its sequence.
	Sync bool
}

// Pong answers a Ping.
type Pong struct {
	ID  uint64 // "id"
	Seq uint64 // "seq": to a Sync: the last sequence that existed then
}

// Reason says why there is a gap.
type Reason uint8

// The reasons. An unknown one is a gap all the same.
const (
	// GapOverflow: the host's kernel dropped events.
	GapOverflow Reason = 1
	// GapJournal: the events are no longer in the journal.
	GapJournal Reason = 2
	// GapBacklog: the subscriber fell too far behind.
	GapBacklog Reason = 3
	// GapStream: the sequence that was named belongs to another stream.
	GapStream Reason = 4
	// GapRestart: the server was not running for a while.
	GapRestart Reason = 5
	// GapRescan: the host asks for a comparison although it may have lost nothing.
	GapRescan Reason = 6
)

var reasonNames = [...]string{
	GapOverflow: "overflow", GapJournal: "journal", GapBacklog: "backlog",
	GapStream: "stream", GapRestart: "restart", GapRescan: "rescan",
}

func (r Reason) String() string {
	if int(r) < len(reasonNames) && reasonNames[r] != "" {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// Gap tells of a loss: what is below Scope has to be compared with the disk.
type Gap struct {
	First  uint64 // "first"
	Last   uint64 // "last": First-1 if the loss was before this stream began
	Scope  string // "scope": a directory's path from the root; "" is the root
	Reason Reason // "why"
}

// Inquire asks, instead of Subscribe, how the server is doing. It is sent only to a server with
// CapStatus.
type Inquire struct{}

// Status answers Inquire. The document is for people and monitoring; nothing in the protocol depends
// on it.
type Status struct {
	JSON []byte // "json": a JSON object
}

// The Type methods tie the messages to their numbers.
func (*Hello) Type() Type      { return TypeHello }
func (*Auth) Type() Type       { return TypeAuth }
func (*Subscribe) Type() Type  { return TypeSubscribe }
func (*Subscribed) Type() Type { return TypeSubscribed }
func (*Events) Type() Type     { return TypeEvents }
func (*Ack) Type() Type        { return TypeAck }
func (*Ping) Type() Type       { return TypePing }
func (*Pong) Type() Type       { return TypePong }
func (*Gap) Type() Type        { return TypeGap }
func (*Error) Type() Type      { return TypeError }
func (*Inquire) Type() Type    { return TypeInquire }
func (*Status) Type() Type     { return TypeStatus }
