package stream

import "github.com/heraldfs/heraldfs/protocol"

// folder keeps entries in order of their sequence and folds them if asked: of each name the
// last delete, the last create after it, and the last of each other operation after those. A
// rename keeps what came before it from being folded with what comes after.
type folder struct {
	fold  bool
	list  []*entry // nil where one was folded away
	head  int      // list[:head] was taken
	live  int
	bytes int
	scope span
	// names finds what of a name is in list since the last rename that concerned it.
	names map[protocol.Place]*slots
}

// slots are positions in list, plus one, by operation.
type slots [protocol.OpAccess + 1]int

// add appends e, which is the newest.
func (f *folder) add(e *entry) {
	f.list = append(f.list, e)
	f.live++
	f.bytes += e.size()
	f.scope.addEntry(e)
	if !f.fold {
		return
	}
	switch {
	case e.lost != 0, e.twoPlaces() && e.isDir, e.twoPlaces() && e.op == protocol.OpExchange:
		// Names below mean something else now. An exchange's other side may be a directory.
		clear(f.names)
		return
	case e.twoPlaces():
		delete(f.names, e.from)
		delete(f.names, e.to)
		return
	}
	if f.names == nil {
		f.names = make(map[protocol.Place]*slots)
	}
	s := f.names[e.from]
	if s == nil {
		s = &slots{}
		f.names[e.from] = s
	}
	for op := range s {
		if op := protocol.Op(op); op == e.op || e.op == protocol.OpDelete || e.op == protocol.OpCreate && op != protocol.OpDelete {
			f.drop(&s[op])
		}
	}
	if int(e.op) < len(s) {
		s[e.op] = len(f.list)
	}
}

func (f *folder) drop(slot *int) {
	if *slot == 0 {
		return
	}
	at := *slot - 1
	*slot = 0
	if at < f.head {
		return // taken already
	}
	if e := f.list[at]; e != nil {
		f.list[at] = nil
		f.live--
		f.bytes -= e.size()
	}
}

// peek returns the oldest entry, nil if there is none.
func (f *folder) peek() *entry {
	for f.head < len(f.list) {
		if e := f.list[f.head]; e != nil {
			return e
		}
		f.head++
	}
	f.reset()
	return nil
}

// pop removes what peek returned.
func (f *folder) pop() {
	e := f.list[f.head]
	f.list[f.head] = nil
	f.head++
	f.live--
	f.bytes -= e.size()
}

// tidy frees the places of entries that were folded away, when they are most of the list.
func (f *folder) tidy() {
	if len(f.names) > 4*f.live+4096 {
		// Names of what was taken long ago; without them less is folded, no more.
		clear(f.names)
	}
	if len(f.list) < 1024 || f.live > len(f.list)/2 {
		return
	}
	moved := make([]int, len(f.list)+1) // old position plus one to new one plus one
	kept := make([]*entry, 0, f.live)
	for i, e := range f.list[f.head:] {
		if e != nil {
			kept = append(kept, e)
			moved[f.head+i+1] = len(kept)
		}
	}
	for _, s := range f.names {
		for op := range s {
			s[op] = moved[s[op]]
		}
	}
	f.list, f.head = kept, 0
}

func (f *folder) reset() { *f = folder{fold: f.fold} }
