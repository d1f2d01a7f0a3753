package portable

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Kind is what an Event tells.
type Kind uint8

// The kinds. There are none for opens, reads and closes: fsnotify does not tell them.
const (
	Create Kind = iota + 1
	Delete
	Rename
	Exchange
	Modify
	Attrib
	// Ready: no change that is made later is missed.
	Ready
	// Overflow: notifications were lost.
	Overflow
	// Rescan: what is below Path has to be compared with the disk.
	Rescan
)

var kindNames = [...]string{Create: "create", Delete: "delete", Rename: "rename", Exchange: "exchange", Modify: "modify",
	Attrib: "attrib", Ready: "ready", Overflow: "overflow", Rescan: "rescan"}

func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Event is one change, by path. Root is an index of Options.Roots, and Path is below it, with slashes; "." is
// the root itself. A Rename has its source in OldRoot and OldPath; a side that is not watched is "".
type Event struct {
	Kind    Kind
	IsDir   bool
	Root    int
	Path    string
	OldRoot int
	OldPath string
	Time    time.Time
}

// hint is a notification of fsnotify.
type hint struct {
	raw  string // as fsnotify says it
	name string // absolute, of now
	op   fsnotify.Op
	from string // of a Create: the old name, if fsnotify knows it
	lost bool   // an overflow
	at   time.Time
	done bool
	// fence, of a half of a rename, is the one before which the other half must come.
	fence uint64
	// id is what Create's name referred to when it was looked at.
	id     identity
	looked bool
}

// oldName finds the old name of a rename. fsnotify keeps it in a field of its own, but prints it:
//
//	CREATE        "new" ← "old"
func oldName(ev fsnotify.Event) string {
	if !ev.Has(fsnotify.Create) {
		return ""
	}
	s := ev.String()
	quote := strings.IndexByte(s, '"')
	if quote < 0 {
		return ""
	}
	name, err := strconv.QuotedPrefix(s[quote:])
	if err != nil {
		return ""
	}
	rest, ok := strings.CutPrefix(s[quote+len(name):], " ← ")
	if !ok {
		return ""
	}
	old, err := strconv.Unquote(rest)
	if err != nil {
		return ""
	}
	return old
}
