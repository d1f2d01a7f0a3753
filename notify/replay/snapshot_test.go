package replay

import (
	"testing"
	"time"
)

// listedTree is a Tree whose directory changes while it is listed.
type listedTree struct {
	emptyTree
	names     []string
	meanwhile func()
}

func (t *listedTree) Names(_ uint64, yield func(name string, isDir bool) bool) error {
	for _, name := range t.names {
		yield(name, false)
	}
	t.meanwhile()
	return nil
}

// TestListingIsOld has events come by between the listing of a directory and its use.
func TestListingIsOld(t *testing.T) {
	v := newView()
	tree := &listedTree{names: []string{"stays", "goes", "moves", "again"}}
	tree.meanwhile = func() {
		v.removed(rootID, "goes", false)
		v.renamed(rootID, "moves", rootID, "moved", false, false, nil, nil)
		v.removed(rootID, "again", false)
		v.told(rootID, "again", fileOut(20), false, false)
		v.absent(rootID, "stays") // what a guest process sees early is no event
	}
	s := newSnapshots(tree, v)
	defer s.close()
	s.list(rootID)
	seen := v.names(rootID)
	for name, want := range map[string]bool{"stays": true, "goes": false, "moves": false, "again": true} {
		if _, got := seen[name]; got != want {
			t.Errorf("%s is listed: %v", name, got)
		}
	}
	// The next listing is from after that.
	tree.names, tree.meanwhile = []string{"goes"}, func() {}
	s.list(rootID)
	if _, got := v.names(rootID)["goes"]; !got {
		t.Error("a name that came back is not listed")
	}
}

// TestAwait waits for the second half of an exchange though the source had read all there was.
func TestAwait(t *testing.T) {
	r := &Replayer{q: newTestQueue(t, 10)}
	batch := taken{events: modify(1)}
	if err := r.q.put(nil, nil, true); err != nil {
		t.Fatal(err)
	}
	put := make(chan error, 1)
	go func() {
		// Only once the news that nothing is there was taken.
		for {
			r.q.mu.Lock()
			idle := r.q.idle
			r.q.mu.Unlock()
			if !idle {
				break
			}
		}
		put <- r.q.put(modify(2), []finding{{at: 1, quest: questVacant, gone: true}}, false)
	}()
	r.found.reset(nil)
	r.await(&batch, 5*time.Second)
	if err := <-put; err != nil {
		t.Fatal(err)
	}
	if len(batch.events) != 3 || batch.idle {
		t.Errorf("%d events, idle %v", len(batch.events), batch.idle)
	}
	if r.found.now = 2; !r.found.vacant() {
		t.Error("what was found about the second event is lost")
	}
	// And it ends without any.
	if r.await(&batch, exchangeWait); len(batch.events) != 3 {
		t.Errorf("%d events", len(batch.events))
	}
}
