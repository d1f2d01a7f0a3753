//go:build linux

package tree

import (
	"sort"

	"github.com/heraldfs/heraldfs/notify"
)

// entryIndex finds the queued events that made or removed an entry.
type entryIndex struct {
	byDir map[notify.Object]map[string][]change
}

type change struct {
	at      int
	appears bool // the entry was not there before
	isDir   bool
	obj     notify.Object // of an entry that went, if it is known
}

// entries indexes buf; positions are good until the next shift.
func (e *engine) entries() *entryIndex {
	if e.index != nil {
		return e.index
	}
	x := &entryIndex{byDir: make(map[notify.Object]map[string][]change)}
	for i := range e.buf {
		ev := &e.buf[i].ev
		switch ev.Op {
		case notify.OpCreate:
			x.add(ev.Dir, ev.Name, change{at: i, appears: true, isDir: ev.IsDir})
		case notify.OpDelete:
			x.add(ev.Dir, ev.Name, change{at: i, isDir: ev.IsDir, obj: ev.Object})
		case notify.OpRename:
			x.add(ev.Dir, ev.Name, change{at: i, isDir: ev.IsDir, obj: ev.Object})
			x.add(ev.NewDir, ev.NewName, change{at: i, appears: true, isDir: ev.IsDir})
		case notify.OpExchange:
			x.add(ev.Dir, ev.Name, change{at: i, isDir: ev.IsDir, obj: ev.Object})
			x.add(ev.NewDir, ev.NewName, change{at: i, isDir: ev.NewIsDir, obj: ev.NewObject})
		}
	}
	e.index = x
	return x
}

func (x *entryIndex) add(dir notify.Object, name string, c change) {
	if dir.IsZero() {
		return
	}
	names := x.byDir[dir]
	if names == nil {
		names = make(map[string][]change)
		x.byDir[dir] = names
	}
	names[name] = append(names[name], c)
}

// appears reports whether name comes into being in dir after position i.
func (x *entryIndex) appears(dir notify.Object, name string, i int) bool {
	for _, c := range x.byDir[dir][name] {
		if c.at > i && c.appears {
			return true
		}
	}
	return false
}

func firstAfter(changes []change, i int) (change, bool) {
	n := sort.Search(len(changes), func(n int) bool { return changes[n].at > i })
	if n == len(changes) {
		return change{}, false
	}
	return changes[n], true
}

func sortedNames(m map[string][]change) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
