package replay

import (
	"strings"
	"time"
)

type nameKey struct {
	parent uint64
	name   string
}

type nameMark struct {
	exists bool
	at     time.Time
}

// tombstoneLimit bounds how many of the guest's own name changes are remembered.
const tombstoneLimit = 4096

// tombstones remembers what the guest itself last did to a name, so that an
// event of the host that is older does not undo it in the eyes of a watcher. Two
// generations bound it: the older one is dropped when the newer one is full.
type tombstones struct {
	young, old map[nameKey]nameMark
}

func (t *tombstones) put(parent uint64, name string, exists bool) {
	if len(t.young) >= tombstoneLimit {
		t.old, t.young = t.young, nil
	}
	if t.young == nil {
		t.young = make(map[nameKey]nameMark)
	}
	t.young[nameKey{parent, strings.Clone(name)}] = nameMark{exists, time.Now()}
}

// after returns what the guest did to the name since at.
func (v *view) after(parent uint64, name string, at time.Time) (exists, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	m, ok := v.marks.young[nameKey{parent, name}]
	if !ok {
		m, ok = v.marks.old[nameKey{parent, name}]
	}
	return m.exists, ok && m.at.After(at)
}
