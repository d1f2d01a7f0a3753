package fusenotify

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/heraldfs/heraldfs/notify"
)

var (
	// ErrNotCached says that the kernel holds nothing of what the message is about.
	ErrNotCached = errors.New("not cached by the kernel")
	// ErrBadName says that a name cannot be a directory entry.
	ErrBadName = errors.New("not the name of a directory entry")
)

// maxPrune is how many node ids go into one PRUNE message.
const maxPrune = 8192

// maxPooled is the largest buffer that is kept for the next message.
const maxPooled = 64 << 10

// Conn sends notifications. Its methods may be called at the same time.
//
// Each returns nil; ErrNotCached; notify.ErrNotSupported if this kernel does not
// know the code; or another error that wraps the errno.
type Conn struct {
	write   func([]byte) error
	pool    sync.Pool // of *message
	missing [codeMax + 1]atomic.Bool
}

type message struct{ buf []byte }

// New returns a Conn whose messages go out through write. write must pass
// each message on in one piece, must not keep it, and returns a syscall.Errno
// or something that wraps one.
func New(write func([]byte) error) *Conn {
	return &Conn{
		write: write,
		pool:  sync.Pool{New: func() any { return &message{buf: make([]byte, 0, 512)} }},
	}
}

// InvalInode drops the attributes of an inode and, if off >= 0, its
// cached pages from off for n bytes; n <= 0 means up to the end. With a
// negative off the pages stay. A directory's cached listing goes with off 0.
func (c *Conn) InvalInode(nodeid uint64, off, n int64) error {
	m := c.begin(CodeInvalInode)
	m.u64(nodeid)
	m.u64(uint64(off))
	m.u64(uint64(n))
	return c.send(CodeInvalInode, m)
}

// InvalEntry makes the kernel forget what a name in parent refers to, and that
// it does not exist. With expireOnly the entry stays and is looked up again at
// its next use: what is mounted on it stays mounted, and a directory in use keeps
// its path. Kernels before 6.2 take no notice of expireOnly (see FUSE_HAS_EXPIRE_ONLY
// in the INIT request).
func (c *Conn) InvalEntry(parent uint64, name string, expireOnly bool) error {
	if err := checkName(name); err != nil {
		return err
	}
	flags := uint32(0)
	if expireOnly {
		flags = ExpireOnly
	}
	m := c.begin(CodeInvalEntry)
	m.u64(parent)
	m.u32(uint32(len(name)))
	m.u32(flags)
	m.name(name)
	return c.send(CodeInvalEntry, m)
}

// Delete tells that child, which was name in parent, is gone. Watchers of child
// hear IN_DELETE_SELF, watchers of parent hear nothing. The kernel sets the link count
// of child to zero: never use it for a file that has other links.
func (c *Conn) Delete(parent, child uint64, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	m := c.begin(CodeDelete)
	m.u64(parent)
	m.u64(child)
	m.u32(uint32(len(name)))
	m.u32(0)
	m.name(name)
	return c.send(CodeDelete, m)
}

// Store puts data into the page cache of a regular file at off, and makes the
// file longer if it ends before off+len(data). Meant for small pieces: data is copied.
func (c *Conn) Store(nodeid uint64, off int64, data []byte) error {
	m := c.begin(CodeStore)
	m.u64(nodeid)
	m.u64(uint64(off))
	m.u32(uint32(len(data)))
	m.u32(0)
	m.buf = append(m.buf, data...)
	return c.send(CodeStore, m)
}

// Resend puts every request that was read but not answered back into the
// queue. It comes again with bit 63 set in its unique id, even if it was already
// carried out.
func (c *Conn) Resend() error { return c.send(CodeResend, c.begin(CodeResend)) }

// IncEpoch makes every entry that the kernel knows be looked up again at its
// next use.
func (c *Conn) IncEpoch() error { return c.send(CodeIncEpoch, c.begin(CodeIncEpoch)) }

// Prune asks the kernel to let go of inodes that nothing uses; FORGETs follow
// for those it could drop. Ids that it does not know are passed over.
func (c *Conn) Prune(nodeids ...uint64) error {
	for len(nodeids) > 0 {
		part := nodeids[:min(len(nodeids), maxPrune)]
		nodeids = nodeids[len(part):]
		m := c.begin(CodePrune)
		m.u32(uint32(len(part)))
		m.u32(0)
		m.u64(0)
		for _, id := range part {
			m.u64(id)
		}
		if err := c.send(CodePrune, m); err != nil {
			return err
		}
	}
	return nil
}

// Missing reports whether the kernel has refused code as unknown.
func (c *Conn) Missing(code Code) bool {
	return code >= 0 && code <= codeMax && c.missing[code].Load()
}

func (c *Conn) begin(code Code) *message {
	m := c.pool.Get().(*message)
	m.begin(code)
	return m
}

func (c *Conn) send(code Code, m *message) error {
	var err error
	if c.missing[code].Load() {
		err = syscall.ENOSYS
	} else {
		m.end()
		err = c.write(m.buf)
	}
	if cap(m.buf) <= maxPooled {
		c.pool.Put(m)
	}
	if err == nil {
		return nil
	}
	return c.convert(code, err)
}

func (c *Conn) convert(code Code, err error) error {
	errno, ok := err.(syscall.Errno)
	if !ok {
		// Apart, because it allocates.
		errno = unwrapErrno(err)
	}
	switch {
	case errno == syscall.ENOENT:
		return ErrNotCached
	case errno == syscall.ENOSYS, errno == syscall.EINVAL && code >= firstProbed:
		c.missing[code].Store(true)
		return fmt.Errorf("fuse notify %v: %w by this kernel", code, notify.ErrNotSupported)
	}
	return fmt.Errorf("fuse notify %v: %w", code, err)
}

// checkName keeps a bad name from being taken for a kernel without the code.
func checkName(name string) error {
	if name == "" || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%w: %q", ErrBadName, name)
	}
	return nil
}

// unwrapErrno returns the errno in err, or zero.
func unwrapErrno(err error) syscall.Errno {
	var errno syscall.Errno
	errors.As(err, &errno)
	return errno
}
