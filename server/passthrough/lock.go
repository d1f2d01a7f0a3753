package passthrough

import (
	"slices"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// Bounds of how often a waiter looks for a lock that a process of the host has released.
const (
	minLockPoll = time.Millisecond
	maxLockPoll = 50 * time.Millisecond
)

// lockState is what a node knows of its locks. It exists from the first lock request on.
type lockState struct {
	mu sync.Mutex
	// owners hold POSIX locks, each on an open file description of its own.
	owners map[uint64]*lockOwner
	// changed is closed when a lock may have been released.
	changed chan struct{}
}

type lockOwner struct {
	fd  *sys.FD
	pid uint32
	// fhs are the open files that it locked through.
	fhs []uint64
}

func (n *node) lockState(create bool) *lockState {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.heldLocked().locks == nil && create && !n.gone {
		n.holdLocked().locks = &lockState{owners: map[uint64]*lockOwner{}, changed: make(chan struct{})}
	}
	return n.heldLocked().locks
}

func (ls *lockState) wakeLocked() {
	close(ls.changed)
	ls.changed = make(chan struct{})
}

func (ls *lockState) wake() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.wakeLocked()
}

func (n *node) wakeLockWaiters() {
	if ls := n.lockState(false); ls != nil {
		ls.wake()
	}
}

func (ls *lockState) closeAll() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, o := range ls.owners {
		o.fd.Release()
	}
	clear(ls.owners)
	ls.wakeLocked()
}

// dropLocks ends owner's POSIX locks on n.
func (fs *FS) dropLocks(n *node, owner uint64) {
	ls := n.lockState(false)
	if ls == nil {
		return
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	o := ls.owners[owner]
	if o == nil {
		return
	}
	delete(ls.owners, owner)
	o.fd.Release()
	ls.wakeLocked()
}

// dropLocksOf ends the locks of the owners that have locked through fh alone, which
// is closed. Nobody tells of the close of a file that was opened with FOPEN_NOFLUSH but RELEASE.
func (n *node) dropLocksOf(fh uint64) {
	ls := n.lockState(false)
	if ls == nil {
		return
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for id, o := range ls.owners {
		i := slices.Index(o.fhs, fh)
		if i < 0 {
			continue
		}
		if o.fhs = slices.Delete(o.fhs, i, i+1); len(o.fhs) == 0 {
			delete(ls.owners, id)
			o.fd.Release()
		}
	}
}

// ownerFD returns the description that owner's POSIX locks are on, with a
// reference. It is made if create is set, and nil otherwise if there is none.
func (fs *FS) ownerFD(n *node, ls *lockState, f *openFile, fh, owner uint64, pid uint32, create bool) (*sys.FD, error) {
	ls.mu.Lock()
	o := ls.owners[owner]
	if o != nil {
		o.pid = pid
		o.fd.Acquire()
		if create && !slices.Contains(o.fhs, fh) {
			o.fhs = append(o.fhs, fh)
		}
	}
	ls.mu.Unlock()
	if o != nil {
		return o.fd, nil
	}
	if !create {
		return nil, nil
	}
	// Opening to write would be told to watchers as CLOSE_WRITE later; it is needed for write locks.
	flags := int(f.flags) & unix.O_ACCMODE
	if flags == unix.O_WRONLY {
		flags = unix.O_RDWR
	}
	raw, err := sys.Reopen(f.fd.Int(), flags)
	if err != nil {
		return nil, err
	}
	fd := sys.NewFD(raw)
	fd.Acquire()
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if o := ls.owners[owner]; o != nil {
		fd.Release()
		fd.Release()
		o.fd.Acquire()
		if !slices.Contains(o.fhs, fh) {
			o.fhs = append(o.fhs, fh)
		}
		return o.fd, nil
	}
	ls.owners[owner] = &lockOwner{fd: fd, pid: pid, fhs: []uint64{fh}}
	return fd, nil
}

func flockT(lk *fuse.FileLock) unix.Flock_t {
	fl := unix.Flock_t{Type: int16(lk.Typ), Whence: unix.SEEK_SET, Start: int64(lk.Start)}
	if lk.End < 1<<63-1 {
		fl.Len = int64(lk.End-lk.Start) + 1
	}
	return fl
}

// GetLk implements fuse.RawFileSystem.
func (fs *FS) GetLk(_ <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	f := fs.files.get(in.Fh, nil)
	if f == nil {
		return fuse.EBADF
	}
	defer f.fd.Release()
	ls := f.n.lockState(true)
	if ls == nil {
		return fuse.EBADF
	}
	fd, err := fs.ownerFD(f.n, ls, f, in.Fh, in.Owner, in.Lk.Pid, false)
	if err != nil {
		return status(err)
	}
	if fd == nil {
		fd = f.fd // has no POSIX locks itself
		fd.Acquire()
	}
	defer fd.Release()
	fl := flockT(&in.Lk)
	if err := unix.FcntlFlock(uintptr(fd.Int()), unix.F_OFD_GETLK, &fl); err != nil {
		return status(err)
	}
	out.Lk = fuse.FileLock{Typ: uint32(fl.Type)}
	if fl.Type == unix.F_UNLCK {
		return fuse.OK
	}
	out.Lk.Start, out.Lk.End = uint64(fl.Start), 1<<63-1
	if fl.Len > 0 {
		out.Lk.End = uint64(fl.Start + fl.Len - 1)
	}
	if fl.Pid > 0 {
		out.Lk.Pid = uint32(fl.Pid)
	} else {
		out.Lk.Pid = ls.holder(in.Owner, fl)
	}
	return fuse.OK
}

// holder finds who of the guest has the lock fl. It is the owner that fl does not conflict with.
func (ls *lockState) holder(asking uint64, fl unix.Flock_t) uint32 {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for id, o := range ls.owners {
		if id == asking {
			continue
		}
		probe := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET, Start: fl.Start, Len: fl.Len}
		if err := unix.FcntlFlock(uintptr(o.fd.Int()), unix.F_OFD_GETLK, &probe); err == nil && probe.Type == unix.F_UNLCK {
			return o.pid
		}
	}
	return 0
}

// SetLk implements fuse.RawFileSystem.
func (fs *FS) SetLk(_ <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return fs.setLock(in, nil)
}

// SetLkw implements fuse.RawFileSystem. It blocks until the lock is granted or cancel is closed.
func (fs *FS) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return fs.setLock(in, cancel)
}

// setLock waits if cancel is not nil.
func (fs *FS) setLock(in *fuse.LkIn, cancel <-chan struct{}) fuse.Status {
	f := fs.files.get(in.Fh, nil)
	if f == nil {
		return fuse.EBADF
	}
	defer f.fd.Release()
	ls := f.n.lockState(true)
	if ls == nil {
		return fuse.EBADF
	}
	try, done, err := fs.lockAttempt(f, ls, in)
	if err != nil {
		return status(err)
	}
	if try == nil {
		return fuse.OK
	}
	defer done()
	if in.Lk.Typ == unix.F_UNLCK {
		defer ls.wake()
	}
	if cancel == nil {
		return status(try())
	}
	return status(waitLock(ls, cancel, try))
}

// lockAttempt returns what tries the lock once; nil means that there is nothing to do.
func (fs *FS) lockAttempt(f *openFile, ls *lockState, in *fuse.LkIn) (try func() error, done func(), err error) {
	if in.LkFlags&fuse.FUSE_LK_FLOCK != 0 {
		how := map[uint32]int{unix.F_RDLCK: unix.LOCK_SH, unix.F_WRLCK: unix.LOCK_EX, unix.F_UNLCK: unix.LOCK_UN}[in.Lk.Typ]
		return func() error { return unix.Flock(f.fd.Int(), how|unix.LOCK_NB) }, nop, nil
	}
	unlock := in.Lk.Typ == unix.F_UNLCK
	ledger := nop
	if !unlock && f.writable() {
		// The owner's description may be closed again at any time.
		ledger = fs.expectOn(f.n, notify.CloseWrite)
	}
	fd, err := fs.ownerFD(f.n, ls, f, in.Fh, in.Owner, in.Lk.Pid, !unlock)
	if err != nil || fd == nil {
		ledger()
		return nil, nil, err
	}
	return func() error {
		fl := flockT(&in.Lk)
		return unix.FcntlFlock(uintptr(fd.Int()), unix.F_OFD_SETLK, &fl)
	}, func() { fd.Release(); ledger() }, nil
}

func waitLock(ls *lockState, cancel <-chan struct{}, try func() error) error {
	poll := minLockPoll
	timer := time.NewTimer(poll)
	defer timer.Stop()
	for {
		ls.mu.Lock()
		changed := ls.changed
		ls.mu.Unlock()
		if err := try(); err != unix.EAGAIN && err != unix.EACCES {
			return err
		}
		select {
		case <-cancel:
			return unix.EINTR
		case <-changed:
			poll = minLockPoll
		case <-timer.C:
			poll = min(2*poll, maxLockPoll)
		}
		timer.Reset(poll)
	}
}
