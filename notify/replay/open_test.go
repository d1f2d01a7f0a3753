package replay

import (
	"fmt"
	"os"
	"testing"

	"github.com/heraldfs/heraldfs/notify"
)

// descriptors counts what the replayer's thread has open.
func (b *bed) descriptors() int {
	b.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/self/task/%d/fd", b.fs.tid.Load()))
	b.must(err)
	return len(entries)
}

// TestOpenFiles opens more than is kept open, and closes it all again.
func TestOpenFiles(t *testing.T) {
	b := newBed(t, before(t))
	b.watch("d/f")
	f := b.obj("d/f")
	open, end := b.ev(notify.OpOpen, "d", "f", f), b.ev(notify.OpCloseNowrite, "d", "f", f)
	b.push(open, end) // opens the way there, too
	start := b.descriptors()
	for range openLimit + 10 {
		b.push(open)
	}
	if n := b.descriptors() - start; n != openLimit {
		t.Errorf("%d files are open, must be %d", n, openLimit)
	}
	for range openLimit + 10 {
		b.push(end)
	}
	if n := b.descriptors() - start; n != 0 {
		t.Errorf("%d files are left open", n)
	}
	b.heard()
}

// TestOpenWithoutRequest replays opens where the kernel does not ask for them.
func TestOpenWithoutRequest(t *testing.T) {
	b := newBed(t, before(t))
	b.watch("d/f")
	b.requests.noOpen.Store(true)
	file, err := os.Open(b.mnt + "/d/f")
	b.must(err)
	file.Close() // fails: the file system has no such handle
	b.heard()
	f := b.obj("d/f")
	b.push(b.ev(notify.OpModify, "d", "f", f))
	start := b.descriptors()
	b.push(b.ev(notify.OpOpen, "d", "f", f))
	// A repeated step closes its directory, too.
	if n := b.descriptors() - start; n > 0 {
		t.Errorf("%d descriptors are lost", n)
	}
	if n := b.fs.Stats().Fallbacks.Load(); n != 1 {
		t.Errorf("%d events fell back to dropping caches, must be 1", n)
	}
	b.heard()
}

// TestWithoutOpen replays ends of files where the server takes no OPEN: also the first, which is the one
// that the kernel asks for.
func TestWithoutOpen(t *testing.T) {
	b := newBed(t, before(t))
	b.fs.WithoutOpen()
	b.watch("d")
	was := b.requests.opens.Load()
	for _, name := range []string{"g", "h"} {
		b.write("d/"+name, name)
		obj := b.obj("d/" + name)
		b.push(b.ev(notify.OpCreate, "d", name, obj), b.ev(notify.OpCloseWrite, "d", name, obj))
		quoted := fmt.Sprintf("%q", name)
		b.expect("d CREATE "+quoted, "d OPEN "+quoted, "d CLOSE_WRITE "+quoted)
		if n := b.requests.opens.Load() - was; n != 1 {
			t.Errorf("%s: %d requests OPEN, must be the first alone", name, n)
		}
	}
	if n := b.fs.Stats().Fallbacks.Load(); n != 0 {
		t.Errorf("%d events fell back to dropping caches", n)
	}
}
