package main

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/server/stream"
	"github.com/heraldfs/heraldfs/watcher/tree"
)

// treeSource makes the records of one watched root a stream.Source.
type treeSource struct {
	tree  *tree.Tree
	ready chan struct{} // closed when nothing is missed any more
	once  sync.Once
	// onReady is called before that, and before any change is emitted.
	onReady func()

	// wanted says whether somebody has a use for states; origin names a process. Both may be nil.
	wanted func() bool
	origin func(pid int32) string

	overflow bool // a rescan that follows is because of it
	buf      []stream.Record
	states   map[string]tree.State // of this batch
}

func newTreeSource(t *tree.Tree, onReady func()) *treeSource {
	return &treeSource{tree: t, ready: make(chan struct{}), onReady: onReady}
}

// Run implements stream.Source.
func (s *treeSource) Run(ctx context.Context, emit func([]stream.Record)) error {
	return s.tree.Run(ctx, func(records []tree.Record) {
		s.buf = s.buf[:0]
		clear(s.states)
		for i := range records {
			r := &records[i]
			if r.Type == tree.TypeReady {
				// It is a Tree's first record.
				s.once.Do(func() {
					s.onReady()
					close(s.ready)
				})
				continue
			}
			if rec, ok := s.record(r); ok {
				s.buf = append(s.buf, rec)
			}
		}
		if len(s.buf) > 0 {
			emit(s.buf)
			clear(s.buf)
		}
	})
}

func (s *treeSource) record(r *tree.Record) (stream.Record, bool) {
	switch r.Type {
	case tree.TypeOverflow:
		// The rescan comes when the watcher knows the tree again.
		s.overflow = true
		return stream.Record{}, false
	case tree.TypeRescan:
		why := protocol.GapRescan
		if s.overflow {
			why, s.overflow = protocol.GapOverflow, false
		}
		return stream.Record{Lost: why, Scope: scopeOf(r.Path)}, true
	}
	op := opOf(r.Type)
	rec := stream.Record{Op: op, IsDir: r.IsDir, Cookie: r.Cookie, Pid: r.Pid, Time: r.Time,
		Object: r.Object, Other: r.Other, OtherIsDir: r.OtherIsDir, Verify: r.Verify, Found: r.Found}
	states := s.wanted != nil && s.wanted()
	if op == protocol.OpRename || op == protocol.OpExchange {
		rec.From, rec.To = placeOf(r.OldPath), placeOf(r.Path)
		rec.Dir, rec.NewDir = r.OldDir, r.Dir
		if states {
			rec.ToState = s.state(r.Path, r.Object)
			rec.FromState = s.state(r.OldPath, r.Other)
		}
	} else {
		rec.From, rec.Dir = placeOf(r.Path), r.Dir
		if states {
			rec.FromState = s.state(r.Path, r.Object)
		}
	}
	if s.origin != nil && r.Pid != 0 {
		rec.Origin = s.origin(r.Pid)
	}
	return rec, op != 0
}

// state is what path shows now. Records of one batch share a look.
func (s *treeSource) state(path string, obj notify.Object) protocol.State {
	if path == "" {
		return protocol.State{}
	}
	st, ok := s.states[path]
	if !ok {
		st = s.tree.State(0, path)
		if s.states == nil {
			s.states = make(map[string]tree.State)
		}
		s.states[path] = st
	}
	return protocol.State{Known: st.Known, Exists: st.Exists, Ino: st.Ino, Size: st.Size, Mtime: st.Mtime, Ctime: st.Ctime,
		Same: st.Exists && !obj.IsZero() && st.Object == obj}
}

// ops are what the records about files tell; those about the watch itself have none.
var ops = [...]protocol.Op{
	tree.TypeCreate: protocol.OpCreate, tree.TypeDelete: protocol.OpDelete, tree.TypeRename: protocol.OpRename,
	tree.TypeExchange: protocol.OpExchange, tree.TypeModify: protocol.OpModify, tree.TypeAttrib: protocol.OpAttrib,
	tree.TypeOpen: protocol.OpOpen, tree.TypeCloseWrite: protocol.OpCloseWrite,
	tree.TypeCloseNowrite: protocol.OpCloseNowrite, tree.TypeAccess: protocol.OpAccess,
}

// opOf and typeOf return 0 for what the other side does not have.
func opOf(t tree.Type) protocol.Op {
	if int(t) < len(ops) {
		return ops[t]
	}
	return 0
}

func typeOf(op protocol.Op) tree.Type {
	return tree.Type(max(slices.Index(ops[:], op), 0))
}

// placeOf splits a path below a root; "" is the placeholder.
func placeOf(path string) protocol.Place {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return protocol.Place{Dir: path[:i], Name: path[i+1:]}
	}
	return protocol.Place{Name: path}
}

func scopeOf(path string) string {
	if path == "." {
		return ""
	}
	return path
}
