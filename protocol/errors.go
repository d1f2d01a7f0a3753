package protocol

import (
	"errors"
	"fmt"
)

// Sentinel errors, matched with errors.Is.
var (
	// ErrMalformed says that bytes are not what the protocol allows.
	ErrMalformed = errors.New("malformed message")
	// ErrFrameTooBig says that a frame exceeds the cap.
	ErrFrameTooBig = errors.New("frame too big")
	// ErrNotHerald says that the peer does not speak this protocol at all.
	ErrNotHerald = errors.New("peer does not speak the heraldfs protocol")
	// ErrSequence says that ranges of events do not touch.
	ErrSequence = errors.New("sequence broken")
	// ErrVersion, ErrAuth, ErrNoRoot, ErrBusy and ErrProtocol are what an Error with
	// the corresponding Code matches.
	ErrVersion  = errors.New("no common protocol version")
	ErrAuth     = errors.New("authentication failed")
	ErrNoRoot   = errors.New("no such root")
	ErrBusy     = errors.New("server has too many subscribers")
	ErrProtocol = errors.New("protocol violation")
	// ErrForbidden says that this peer may not have what it asked for.
	ErrForbidden = errors.New("not allowed")
	// ErrNoOrigin says that the server calls no process by the name that the subscriber goes by.
	ErrNoOrigin = errors.New("no such origin")
	// ErrShutdown says that the server is going away.
	ErrShutdown = errors.New("server is shutting down")
)

// Code says what went wrong, for programs.
type Code uint32

// The codes. 0 stands for an error without a code of its own.
const (
	CodeInternal  Code = 0
	CodeVersion   Code = 1
	CodeAuth      Code = 2
	CodeNoRoot    Code = 3
	CodeBusy      Code = 4
	CodeProtocol  Code = 5
	CodeShutdown  Code = 6
	CodeForbidden Code = 7
	CodeNoOrigin  Code = 8
)

// sentinel is the error that belongs to a code, nil if there is none.
func (c Code) sentinel() error {
	switch c {
	case CodeVersion:
		return ErrVersion
	case CodeAuth:
		return ErrAuth
	case CodeNoRoot:
		return ErrNoRoot
	case CodeBusy:
		return ErrBusy
	case CodeProtocol:
		return ErrProtocol
	case CodeShutdown:
		return ErrShutdown
	case CodeForbidden:
		return ErrForbidden
	case CodeNoOrigin:
		return ErrNoOrigin
	}
	return nil
}

// Error is the message before a connection is closed for a reason, and the Go
// error of whoever receives it.
type Error struct {
	Code Code   // "code"
	Text string // "text": for people
}

func (e *Error) Error() string {
	text := printable(e.Text)
	if known := e.Code.sentinel(); known != nil {
		if text == "" {
			return "peer says: " + known.Error()
		}
		return fmt.Sprintf("peer says: %v: %s", known, text)
	}
	return fmt.Sprintf("peer says: error %d: %s", e.Code, text)
}

// Is matches the sentinel that belongs to the code.
func (e *Error) Is(target error) bool {
	known := e.Code.sentinel()
	return known != nil && known == target
}

// Permanent reports whether trying again without a change would fail the same way.
func (e *Error) Permanent() bool {
	switch e.Code {
	case CodeVersion, CodeAuth, CodeNoRoot, CodeProtocol, CodeForbidden, CodeNoOrigin:
		return true
	}
	return false
}

// printable keeps a peer's text from talking to the terminal.
func printable(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < 0x20 || c >= 0x7f {
			b[i] = '?'
		}
	}
	return string(b)
}
