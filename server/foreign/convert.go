package foreign

import (
	"time"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
)

// Types of notify.Object that no kernel gives.
const (
	// typeNode is a node of ours that no host object is bound to; FS is its nodeid.
	typeNode int32 = -2
	// typePath is a directory that the server has no identity for; Handle is its path. What it
	// stands for changes from event to event.
	typePath int32 = -3
)

// object is the host's object, not ok for an unknown one and for what could be taken for one of
// ours.
func object(id *protocol.Identity) (obj notify.Object, ok bool) {
	if id.IsZero() || id.Type < 0 {
		return notify.Object{}, false
	}
	return notify.Object{FS: id.FS, Type: id.Type, Handle: id.Handle}, true
}

// directory is a place's directory: zero for the placeholder.
func directory(p *protocol.Place, id *protocol.Identity) notify.Object {
	if !p.Known() {
		return notify.Object{}
	}
	if obj, ok := object(id); ok {
		return obj
	}
	return notify.Object{Type: typePath, Handle: p.Dir}
}

func state(s *protocol.State) notify.State {
	return notify.State{Known: s.Known, Exists: s.Exists, Same: s.Same, Ino: s.Ino, Size: s.Size, Mtime: s.Mtime, Ctime: s.Ctime}
}

// convert makes a server's event one of the replay's.
func convert(in *protocol.Event, now time.Time) (notify.Event, bool) {
	ev := notify.Event{
		Op: in.Op.Notify(), IsDir: in.IsDir, Dir: directory(&in.From, &in.Dir), Name: in.From.Name,
		NewDir: directory(&in.To, &in.NewDir), NewName: in.To.Name, NewIsDir: in.OtherIsDir,
		Cookie: in.Cookie, Pid: in.Pid, Verify: in.Verify, Seq: in.Seq, Time: in.Time,
		Remote: &notify.Remote{
			DirPath: in.From.Dir, NewDirPath: in.To.Dir, Origin: in.Origin, Found: in.Found, Arrived: now,
			From: state(&in.FromState), To: state(&in.ToState),
		},
	}
	ev.Object, _ = object(&in.Object)
	ev.NewObject, _ = object(&in.Other)
	if in.From.Dir == "" && in.From.Name == "." {
		// The root has no directory above it.
		ev.Dir, ev.Object = ev.Object, notify.Object{}
		if ev.Dir.IsZero() {
			ev.Dir = notify.Object{Type: typePath}
		}
		if ev.Op != notify.OpAttrib {
			return ev, false // its end is the mount's end
		}
	}
	return ev, ev.Op != 0
}
