package passthrough

import (
	"os"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/heraldfs/heraldfs/notify"
)

// hotCall is what the guest or replay asks for most, and the allocations that it may cost. One
// of a lookup's is the terminated name for openat(2).
type hotCall struct {
	name   string
	allocs float64
	call   func() bool
}

func hotCalls(t testing.TB) []hotCall {
	src := t.TempDir()
	must(t, os.WriteFile(src+"/f", nil, 0o644))
	must(t, os.WriteFile(src+"/new", nil, 0o644))
	must(t, os.Mkdir(src+"/d", 0o755))
	fs := newFS(t, src, Options{FileHandles: HandleMandatory})
	f, d := mustLookup(t, fs, rootID, "f"), mustLookup(t, fs, rootID, "d")
	obj := mustObject(fs, d.NodeId)
	unknown := notify.Object{FS: obj.FS, Type: obj.Type, Handle: "unknown!"}
	root := &fuse.InHeader{NodeId: rootID}
	var entry fuse.EntryOut
	var attr fuse.AttrOut
	var ids [4]uint64
	look := func(name string) func() bool {
		return func() bool {
			ok := fs.Lookup(nil, root, name, &entry).Ok()
			fs.Forget(entry.NodeId, 1)
			return ok
		}
	}
	getattr := func(id uint64) func() bool {
		in := &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: id}}
		return func() bool { return fs.GetAttr(nil, in, &attr).Ok() }
	}
	return []hotCall{
		{"LookupKnown", 1, look("f")},
		{"LookupNew", 2, look("new")}, // and the node
		{"GetAttrFile", 1, getattr(f.NodeId)},
		{"GetAttrDirectory", 0, getattr(d.NodeId)},
		{"NodeIDs", 0, func() bool {
			return len(fs.NodeIDs(ids[:0], obj)) == 1 && len(fs.NodeIDs(ids[:0], unknown)) == 0
		}},
	}
}

func BenchmarkHotCalls(b *testing.B) {
	for _, c := range hotCalls(b) {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !c.call() {
					b.Fatal("failed")
				}
			}
		})
	}
}

func TestAllocations(t *testing.T) {
	for _, c := range hotCalls(t) {
		if got := testing.AllocsPerRun(1000, func() {
			if !c.call() {
				t.Error("failed")
			}
		}); got > c.allocs {
			t.Errorf("%s: %v allocations, at most %v", c.name, got, c.allocs)
		}
	}
}
