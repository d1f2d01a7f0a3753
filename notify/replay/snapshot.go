package replay

import (
	"sync"
)

// snapshots keep the names of every known directory, so that after a loss a name that
// the guest never looked up can be told to be gone. Needed only where the source's queue is
// bounded. One goroutine lists each directory when it becomes known; events keep the list.
type snapshots struct {
	tree Tree
	view *view

	mu     sync.Mutex
	wake   *sync.Cond
	ids    []uint64
	closed bool
}

func newSnapshots(t Tree, v *view) *snapshots {
	s := &snapshots{tree: t, view: v}
	s.wake = sync.NewCond(&s.mu)
	s.ids = append(s.ids, rootID)
	v.mu.Lock()
	v.onDir = s.add
	for id, n := range v.nodes.All() {
		if n.isDir() && id != rootID && !ours(id) {
			s.ids = append(s.ids, id)
		}
	}
	v.mu.Unlock()
	return s
}

func (s *snapshots) add(id uint64) {
	s.mu.Lock()
	s.ids = append(s.ids, id)
	s.mu.Unlock()
	s.wake.Signal()
}

func (s *snapshots) run() {
	for {
		s.mu.Lock()
		for len(s.ids) == 0 && !s.closed {
			s.wake.Wait()
		}
		if s.closed {
			s.mu.Unlock()
			return
		}
		id := s.ids[len(s.ids)-1]
		s.ids = s.ids[:len(s.ids)-1]
		s.mu.Unlock()
		s.list(id)
	}
}

func (s *snapshots) list(id uint64) {
	ended := make(map[string]bool)
	s.view.mu.Lock()
	s.view.listing, s.view.ended = id, ended
	s.view.mu.Unlock()
	names := make(map[string]bool)
	// A directory that is gone again has nothing to remember.
	_ = s.tree.Names(id, func(name string, isDir bool) bool {
		names[name] = isDir
		return true
	})
	s.view.mu.Lock()
	defer s.view.mu.Unlock()
	s.view.listing, s.view.ended = 0, nil
	n := s.view.nodes.Get(id)
	if n == nil {
		return
	}
	for name, isDir := range names {
		if !ended[name] {
			d := n.atLocked(name)
			d.listed, d.listedDir, d.ahead = true, isDir, false
			n.setLocked(name, d)
		}
	}
}

func (s *snapshots) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wake.Signal()
	s.view.mu.Lock()
	s.view.onDir = nil
	s.view.mu.Unlock()
}
