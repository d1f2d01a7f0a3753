package replay

import "github.com/heraldfs/heraldfs/notify"

// lookahead tells whether a name will stand for something else later in the batch. A
// source that does not name objects leaves us to look a name up on the host; what is found
// there is only what the event was about if nothing has changed the name since.
//
// Where the source does name objects it counts the links that later events of the batch remove: the
// host's link count is ahead by them.
type lookahead struct {
	last  map[aheadKey]int
	links map[notify.Object]int
	// entries counts the entry events of each name and each object of a batch. More than one
	// can have been merged with another.
	entries map[aheadKey]int
	objects map[notify.Object]int
	at      int
	left    int           // events behind the current one
	next    notify.Object // what the next one is about
}

// backlog is the number of waiting events from which on a new file that no waiting event is about is
// left unknown to the guest until somebody asks, as a directory always is.
const backlog = 64

// hurried reports whether obj, which the current event made, can be left unknown.
func (l *lookahead) hurried(obj notify.Object) bool {
	return l.left >= backlog && !obj.IsZero() && l.next != obj
}

// hurriedAt tells the same of what events[i] makes.
func (l *lookahead) hurriedAt(events []notify.Event, i int) bool {
	obj := events[i].Object
	return len(events)-i-1 >= backlog && !obj.IsZero() && events[i+1].Object != obj
}

type aheadKey struct {
	dir  notify.Object
	name string
}

// reset takes a new batch. It costs nothing for sources that name objects.
func (l *lookahead) reset(events []notify.Event) {
	clear(l.last)
	clear(l.links)
	clear(l.entries)
	clear(l.objects)
	for i := range events {
		ev := &events[i]
		if !ev.Object.IsZero() {
			l.count(ev, 1)
			if len(events) > burst {
				l.note(ev)
			}
			if ev.Remote == nil {
				continue
			}
		}
		switch ev.Op {
		case notify.OpCreate, notify.OpDelete, notify.OpRename, notify.OpExchange:
			if l.last == nil {
				l.last = make(map[aheadKey]int)
			}
			l.last[aheadKey{ev.Dir, ev.Name}] = i
			if ev.Op != notify.OpCreate && ev.Op != notify.OpDelete {
				l.last[aheadKey{ev.NewDir, ev.NewName}] = i
			}
		}
	}
}

// changes reports whether an event behind the current one changes dir/name.
func (l *lookahead) changes(dir notify.Object, name string) bool {
	return l.later(l.at, dir, name)
}

// later reports the same of what is behind the i-th event.
func (l *lookahead) later(i int, dir notify.Object, name string) bool {
	last, ok := l.last[aheadKey{dir, name}]
	return ok && last > i
}

// count adds, times sign, the links that ev takes away.
func (l *lookahead) count(ev *notify.Event, sign int) {
	if ev.IsDir || ev.Object.IsZero() {
		return
	}
	switch ev.Op {
	case notify.OpCreate:
		sign = -sign
	case notify.OpDelete:
	default:
		return
	}
	if l.links == nil {
		l.links = make(map[notify.Object]int)
	}
	if n := l.links[ev.Object] + sign; n != 0 {
		l.links[ev.Object] = n
	} else {
		delete(l.links, ev.Object)
	}
}

// advance makes events[i] the current one.
func (l *lookahead) advance(events []notify.Event, i int) {
	l.at, l.left, l.next = i, len(events)-i-1, notify.Object{}
	if l.left > 0 {
		l.next = events[i+1].Object
	}
	l.count(&events[i], -1)
}

// shift says that what reset was given began at the i-th event.
func (l *lookahead) shift(i int) {
	for k := range l.last {
		l.last[k] += i
	}
}

// note counts ev for merged.
func (l *lookahead) note(ev *notify.Event) {
	switch ev.Op {
	case notify.OpCreate, notify.OpDelete, notify.OpRename, notify.OpExchange:
	default:
		return
	}
	if l.entries == nil {
		l.entries, l.objects = make(map[aheadKey]int), make(map[notify.Object]int)
	}
	l.entries[aheadKey{ev.Dir, ev.Name}]++
	if !ev.NewDir.IsZero() {
		l.entries[aheadKey{ev.NewDir, ev.NewName}]++
	}
	l.objects[ev.Object]++
	if !ev.NewObject.IsZero() {
		l.objects[ev.NewObject]++
	}
}

// merged reports whether the kernel may have merged something into what ev tells.
func (l *lookahead) merged(ev *notify.Event) bool {
	return l.objects[ev.Object] > 1 || l.entries[aheadKey{ev.Dir, ev.Name}] > 1 ||
		!ev.NewDir.IsZero() && l.entries[aheadKey{ev.NewDir, ev.NewName}] > 1
}

// doubtful reports whether ev, of a burst, may have left the guest with another object at its names
// than the host has: where the kernel has merged something, and without objects each time that a name
// changes. What changes no name finds what the changes before it left.
func (l *lookahead) doubtful(ev *notify.Event) bool {
	if !ev.Object.IsZero() {
		return l.merged(ev)
	}
	switch ev.Op {
	case notify.OpCreate, notify.OpDelete, notify.OpRename, notify.OpExchange:
		return true
	}
	return false
}
