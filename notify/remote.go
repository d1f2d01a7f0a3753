package notify

import "time"

// Remote is what comes with an Event from a Source on another machine. Dir and NewDir are then
// objects of that machine, or stand for nothing but the path.
type Remote struct {
	// DirPath and NewDirPath are where Dir and NewDir were below the root when the
	// event happened, without slashes at the ends.
	DirPath, NewDirPath string
	// From and To are what Dir/Name and NewDir/NewName showed there when the event was sent.
	From, To State
	// Found says that the other machine found this by comparing. It may be told already.
	Found bool
	// Origin is the name by which the other machine knows who did it.
	Origin string
	// Arrived is when the event came here, by our clock; Event.Time is by the other machine's until
	// the event is resolved.
	Arrived time.Time
}

// State is what a name showed at some time. The zero State is not known.
type State struct {
	Known  bool
	Exists bool // the fields below count
	// Same says that it was still the Event's Object.
	Same         bool
	Ino, Size    uint64
	Mtime, Ctime int64 // nanoseconds since 1970
}
