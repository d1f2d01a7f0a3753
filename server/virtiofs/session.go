package virtiofs

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// session is one FUSE mount of the guest, from INIT on.
type session struct {
	fs     fuse.RawFileSystem
	server *fuse.ProtocolServer
	// setxattrExt says that SETXATTR has its longer form; set before the session is current.
	setxattrExt bool

	mu     sync.Mutex
	ended  bool
	active map[*request]uint64 // unique of each request in a handler
	wg     sync.WaitGroup      // handlers; none is added once ended
}

func newSession(newFS NewFS, guest Guest, log *slog.Logger) (*session, error) {
	fs, opts, err := newFS(guest)
	if err != nil {
		return nil, fmt.Errorf("file system: %w", err)
	}
	if opts == nil {
		opts = &fuse.MountOptions{}
	}
	o := *opts
	if o.Logger == nil {
		// A hostile guest can cause these lines at will.
		o.Logger = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	}
	return &session{fs: fs, server: fuse.NewProtocolServer(fs, &o), active: make(map[*request]uint64)}, nil
}

// enter counts r as in a handler; false if the session has ended.
func (s *session) enter(r *request, unique uint64) bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.active[r] = unique
	s.wg.Add(1)
	return true
}

func (s *session) leave(r *request) {
	s.mu.Lock()
	delete(s.active, r)
	s.mu.Unlock()
	s.wg.Done()
}

// cancelAll tells every handler that its request is off. go-fuse lets a handler
// know of that only through INTERRUPT, so we make one for each.
func (s *session) cancelAll() {
	if s == nil {
		return
	}
	s.mu.Lock()
	uniques := make([]uint64, 0, len(s.active))
	for _, u := range s.active {
		uniques = append(uniques, u)
	}
	s.mu.Unlock()
	var out [outHeaderSize]byte
	for _, u := range uniques {
		in := make([]byte, inHeaderSize+8)
		binary.LittleEndian.PutUint32(in[0:], uint32(len(in)))
		binary.LittleEndian.PutUint32(in[4:], opInterrupt)
		binary.LittleEndian.PutUint64(in[inHeaderSize:], u)
		s.server.HandleRequest([][]byte{in}, [][]byte{out[:]})
	}
}

// end refuses new requests, cancels and waits for those that run, and lets the file system go.
func (s *session) end() {
	if s == nil {
		return
	}
	s.mu.Lock()
	was := s.ended
	s.ended = true
	s.mu.Unlock()
	if was {
		return
	}
	waitCancelling(s.wg.Wait, s.cancelAll)
	s.fs.OnUnmount()
}
