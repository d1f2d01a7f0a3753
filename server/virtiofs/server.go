package virtiofs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol/transport"
	"github.com/heraldfs/heraldfs/server/opcount"
)

// Sentinel errors, matched with errors.Is.
var (
	// ErrProtocol: the front-end sent what makes no sense.
	ErrProtocol = errors.New("vhost-user protocol error")
	// ErrGuest: the guest's driver broke the rules of its queues.
	ErrGuest = errors.New("invalid virtqueue")
	// ErrMemory: the guest's memory went away under us.
	ErrMemory = errors.New("guest memory fault")
	// ErrInUse: another back-end listens on the socket.
	ErrInUse = errors.New("socket is in use")
)

// MaxQueues is the largest Options.Queues.
const MaxQueues = 255

// maxPath is the longest path of a socket: sun_path of unix(7) without its end.
const maxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// Options configures Listen. The zero value works.
type Options struct {
	// Tag is the name to mount by, for a VMM that asks for it; most are told on their own command
	// line. At most 36 bytes.
	Tag string
	// Queues is the largest number of request queues that a VMM may use. 0 is 8.
	Queues int
	// MaxWorkers bounds the requests that are carried out beside the queues' own
	// goroutines; when all are busy, requests wait in their queue. 0 is 64.
	MaxWorkers int
	// OnConnect and OnDisconnect bracket a VMM's connection; err is nil if the VMM
	// closed it or Serve's context ended. They may be nil.
	OnConnect    func()
	OnDisconnect func(err error)
	// OnError is told when a device stops because of err (ErrGuest, ErrMemory); the connection
	// remains, and a reset of the guest heals it. It must not block. It may be nil.
	OnError func(err error)
	// Requests, if set, counts what the guests ask.
	Requests *opcount.Counts
	// Logger is where to log; nil discards.
	Logger *slog.Logger
}

// Listener is what a Server needs of a unix socket's: *net.UnixListener is one, and what ListenUnix makes.
type Listener interface {
	net.Listener
	AcceptUnix() (*net.UnixConn, error)
}

// Server listens for the VMM of one virtual machine at a time.
type Server struct {
	opts     Options
	listener Listener

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	mu      sync.Mutex
	closed  bool
	serving sync.WaitGroup // added to only while not closed
}

// Listen makes the socket, with mode 0600. A socket that a dead process left is replaced.
func Listen(socket string, o Options) (*Server, error) {
	l, err := ListenUnix(socket)
	if err != nil {
		return nil, err
	}
	s, err := New(l, o)
	if err != nil {
		l.Close()
	}
	return s, err
}

// New makes a Server of a socket that listens already, and becomes the Server's.
func New(l Listener, o Options) (*Server, error) {
	probe := uint16(1)
	if *(*byte)(unsafe.Pointer(&probe)) != 1 {
		return nil, fmt.Errorf("virtqueues on a big-endian host: %w", notify.ErrNotSupported)
	}
	if len(o.Tag) > tagSize {
		return nil, fmt.Errorf("tag %q is longer than %d bytes", o.Tag, tagSize)
	}
	if o.Queues < 0 || o.Queues > MaxQueues || o.MaxWorkers < 0 {
		return nil, fmt.Errorf("%d queues, %d workers: out of range", o.Queues, o.MaxWorkers)
	}
	if o.Queues == 0 {
		o.Queues = 8
	}
	if o.MaxWorkers == 0 {
		o.MaxWorkers = 64
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{opts: o, listener: l}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// ListenUnix makes a socket as Listen does. Closing the listener removes it, but not what somebody else has put in its
// place.
func ListenUnix(socket string) (*transport.UnixListener, error) {
	if len(socket) > maxPath {
		return nil, fmt.Errorf("listen %s: a socket's path has at most %d bytes, this one %d: %w", socket, maxPath, len(socket), unix.ENAMETOOLONG)
	}
	if err := removeStale(socket); err != nil {
		return nil, fmt.Errorf("listen %s: %w", socket, err)
	}
	// The mode of the socket's inode is taken from the descriptor's, so that it is never wider,
	// not even for a moment (unix(7), bind).
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(cerr, err)
	}}
	l, err := config.Listen(context.Background(), "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", socket, err)
	}
	own, err := transport.OwnUnix(l.(*net.UnixListener), socket)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), l.Close())
	}
	return own, nil
}

// removeStale removes a socket that nobody listens on.
func removeStale(socket string) error {
	st, err := os.Lstat(socket)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("exists and is not a socket: %w", os.ErrExist)
	}
	c, err := net.Dial("unix", socket)
	if err == nil {
		c.Close()
		return ErrInUse
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return os.Remove(socket)
}

// Serve accepts one VMM after the other until ctx ends or Close is called, and
// returns nil then. A VMM that connects while another one is served waits.
func (s *Server) Serve(ctx context.Context, newFS NewFS) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return notify.ErrClosed
	}
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	defer context.AfterFunc(ctx, func() { s.listener.Close() })()
	for {
		c, err := transport.Accept(ctx, s.listener.AcceptUnix, s.opts.Logger)
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		s.serveConn(ctx, c, newFS)
	}
}

// Close ends Serve, waits for it and removes the socket. Idempotent.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.listener.Close()
	s.serving.Wait()
	return nil
}

func (s *Server) serveConn(ctx context.Context, c *net.UnixConn, newFS NewFS) {
	s.opts.Logger.Info("a VMM has connected")
	if s.opts.OnConnect != nil {
		s.opts.OnConnect()
	}
	// A deadline wakes the reader. The connection is closed only when the
	// guest's memory is not used any more.
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	d := newDevice(&s.opts, newFS)
	err := s.talk(c, d)
	stop()
	d.close()
	c.Close()
	if ctx.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		err = nil
	}
	if err != nil {
		s.opts.Logger.Error("the VMM's connection has ended", "err", err)
	} else {
		s.opts.Logger.Info("the VMM's connection has ended")
	}
	if s.opts.OnDisconnect != nil {
		s.opts.OnDisconnect(err)
	}
}

// talk carries out the front-end's messages until the connection ends.
func (s *Server) talk(c *net.UnixConn, d *device) error {
	for {
		m, err := readMessage(c)
		if err != nil {
			return err
		}
		s.opts.Logger.Debug("vhost-user", "request", m.request, "flags", m.flags, "payload", m.payload, "fds", len(m.fds))
		r, err := d.control(m)
		m.close()
		switch {
		case err != nil && !m.needReply():
			return err
		case err != nil:
			s.opts.Logger.Warn("a request of the VMM was refused", "err", err)
			r = replyWith(u64Bytes(1))
		case r == nil && m.needReply():
			r = replyWith(u64Bytes(0))
		}
		if r == nil {
			continue
		}
		if err := r.send(c, m.request); err != nil {
			return err
		}
	}
}

func (r *reply) send(c *net.UnixConn, request uint32) error {
	var oob []byte
	if r.fd >= 0 {
		defer unix.Close(r.fd)
		oob = unix.UnixRights(r.fd)
	}
	b := encodeReply(request, r.payload)
	n, _, err := c.WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) {
		_, err = c.Write(b[n:])
	}
	if err != nil {
		return fmt.Errorf("reply to request %d: %w", binary.LittleEndian.Uint32(b), err)
	}
	return nil
}
