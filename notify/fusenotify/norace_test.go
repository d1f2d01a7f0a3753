//go:build !race

package fusenotify

import (
	"strings"
	"syscall"
	"testing"
)

// Under the race detector sync.Pool drops at random.
func TestNoAllocations(t *testing.T) {
	conn := New(func([]byte) error { return nil })
	missing := New(func([]byte) error { return syscall.ENOENT })
	name := strings.Repeat("n", 255)
	got := testing.AllocsPerRun(1000, func() {
		_ = conn.InvalInode(7, 0, 0)
		_ = conn.InvalEntry(7, name, true)
		_ = conn.Delete(7, 8, name)
		_ = missing.InvalInode(7, 0, 0)
	})
	// A garbage collection may empty the pool once.
	if got >= 1 {
		t.Errorf("%v allocations for four messages", got)
	}
}
