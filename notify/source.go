package notify

import (
	"context"
	"errors"
)

// Sentinel errors, matched with errors.Is.
var (
	// ErrClosed is returned by an operation on something that was closed.
	ErrClosed = errors.New("closed")
	// ErrNotSupported is returned where the kernel, the file system or our
	// privileges do not allow what was asked; the text says which.
	ErrNotSupported = errors.New("not supported")
	// ErrOverflow says that events were lost.
	ErrOverflow = errors.New("event queue overflow")
)

// Source yields the Events of a host tree.
type Source interface {
	// Run reads until ctx ends or Close is called, then returns nil; any other
	// end is an error. emit is called from one goroutine; it owns neither the
	// slice nor may it keep it, and it must not block for long: while it does,
	// the kernel's queue grows. An empty slice tells that the queue has been
	// read to its end since the last one that was not.
	Run(ctx context.Context, emit func([]Event)) error
	// Close ends Run and frees what the source holds. Idempotent.
	Close() error
}

// Barrier is a Source that can tell when it has caught up.
type Barrier interface {
	// Barrier returns when every record that the kernel had queued before the call has
	// been emitted.
	Barrier(ctx context.Context) error
}

// Marker is a Source that hears only of directories that were marked.
type Marker interface {
	// Mark asks for the events of the directory that fd (any descriptor,
	// O_PATH will do; it stays the caller's) refers to. Its events carry dir.
	// Marking twice is not an error. When Mark has returned, no later
	// change is missed.
	Mark(dir Object, fd int) error
	// Unmark ends that. Events that are queued already may still come.
	Unmark(dir Object)
}

// FileMarker is a Marker that can hear of a file that is in none of the marked
// directories: of its content, its attributes and its end, not of its name.
type FileMarker interface {
	Marker
	// MarkFile asks for the events of the file that fd refers to; they carry file
	// as their Object and no Dir. Unmark ends that.
	MarkFile(file Object, fd int) error
}

// Delivery makes a guest's watchers hear events.
type Delivery interface {
	// Deliver takes a batch in order. The slice is the caller's again on return.
	// It blocks when the bounded queue behind it is full.
	Deliver(events []Event) error
	// Sync returns when everything delivered before it is visible and heard.
	Sync(ctx context.Context) error
}

// Ledger swallows echoes where events carry no pid: whoever is about to change the host
// tree says so first, and the source asks of each record whether it was announced.
type Ledger interface {
	// Expect announces that records with these masks, one each, are about to
	// appear for (dir, name). The returned function must be called when the
	// operation has ended: what was not heard of by the next
	// time the queue is empty will not come, and is forgotten.
	Expect(dir Object, name string, masks ...Mask) (done func())
	// Swallow reports whether r was announced, and strikes it off.
	Swallow(r *Raw) bool
	// BeginRead and Drained bracket a read of the kernel queue: Drained(t) says that everything queued
	// before BeginRead returned t has been seen by Swallow.
	BeginRead() uint64
	Drained(t uint64)
}
