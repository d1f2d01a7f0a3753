package notify

import "strings"

// Mask is a set of kernel notification bits. inotify and fanotify give their
// common bits the same values (include/linux/fsnotify_backend.h), so one type
// serves both.
type Mask uint64

// The bits, in the kernel's spelling; values from include/uapi/linux/fanotify.h
// and inotify.h.
const (
	Access       Mask = 0x00000001
	Modify       Mask = 0x00000002
	Attrib       Mask = 0x00000004
	CloseWrite   Mask = 0x00000008
	CloseNowrite Mask = 0x00000010
	Open         Mask = 0x00000020
	MovedFrom    Mask = 0x00000040
	MovedTo      Mask = 0x00000080
	Create       Mask = 0x00000100
	Delete       Mask = 0x00000200
	DeleteSelf   Mask = 0x00000400
	MoveSelf     Mask = 0x00000800
	Unmount      Mask = 0x00002000
	QOverflow    Mask = 0x00004000
	Ignored      Mask = 0x00008000
	Rename       Mask = 0x10000000 // FAN_RENAME; fanotify only
	IsDir        Mask = 0x40000000 // IN_ISDIR, FAN_ONDIR

	// Moves is both halves of a rename as inotify tells it.
	Moves = MovedFrom | MovedTo

	// DefaultMask is what is delivered when nobody says otherwise: every
	// change, without opens and reads.
	DefaultMask = Modify | Attrib | CloseWrite | Moves | Create | Delete | DeleteSelf | MoveSelf
	// AllMask adds opens, reads and closes without a write.
	AllMask = DefaultMask | Access | Open | CloseNowrite
)

var maskNames = []struct {
	bit  Mask
	name string
}{
	{Access, "ACCESS"}, {Modify, "MODIFY"}, {Attrib, "ATTRIB"},
	{CloseWrite, "CLOSE_WRITE"}, {CloseNowrite, "CLOSE_NOWRITE"}, {Open, "OPEN"},
	{MovedFrom, "MOVED_FROM"}, {MovedTo, "MOVED_TO"}, {Create, "CREATE"},
	{Delete, "DELETE"}, {DeleteSelf, "DELETE_SELF"}, {MoveSelf, "MOVE_SELF"},
	{Unmount, "UNMOUNT"}, {QOverflow, "Q_OVERFLOW"}, {Ignored, "IGNORED"},
	{Rename, "RENAME"}, {IsDir, "ISDIR"},
}

// String joins the names of the set bits with commas, as inotifywait prints
// them: "CREATE,ISDIR".
func (m Mask) String() string {
	var parts []string
	for _, n := range maskNames {
		if m&n.bit != 0 {
			parts = append(parts, n.name)
		}
	}
	return strings.Join(parts, ",")
}

// ParseMask reads a comma-separated list of event names in any case. Besides
// the kernel's names it knows inotifywait's "close" and "move", and "default"
// and "all". An unknown name is reported as the second result.
func ParseMask(s string) (Mask, string) {
	var m Mask
	for _, word := range strings.Split(s, ",") {
		word = strings.TrimSpace(word)
		bit, ok := maskWord(word)
		if !ok {
			return 0, word
		}
		m |= bit
	}
	return m, ""
}

func maskWord(word string) (Mask, bool) {
	switch up := strings.ToUpper(word); up {
	case "CLOSE":
		return CloseWrite | CloseNowrite, true
	case "MOVE", "RENAME":
		return Moves, true
	case "DEFAULT":
		return DefaultMask, true
	case "ALL":
		return AllMask, true
	default:
		for _, n := range maskNames {
			if n.name == up && n.bit&AllMask != 0 {
				return n.bit, true
			}
		}
	}
	return 0, false
}
