package agent

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// submounts enters what the kernel mounts below a mount. Only enter and close are not for every goroutine.
type submounts struct {
	mounts *mountWatch
	top    mountID
	root   int // of top's clone

	// clones are by the mount that was cloned. Only the one that enters reads them.
	clones map[mounted]submount

	mu   sync.Mutex
	used map[mounted]bool // what was found where a submount was entered
	gone bool
}

// mounted is a mount. Its number is given to another one when it has gone; the device of what we have cloned is not.
type mounted struct{ id, major, minor int }

// submount is a clone of a mount that others see.
type submount struct{ fd, id int }

func newSubmounts(w *mountWatch, top mountID, root int) *submounts {
	return &submounts{mounts: w, top: top, root: root, clones: make(map[mounted]submount), used: make(map[mounted]bool)}
}

func (s *submounts) close() {
	for _, c := range s.clones {
		unix.Close(c.fd)
	}
}

// enter returns a descriptor of what is mounted on dir, which is on a clone of ours, for guest processes.
func (s *submounts) enter(dir int) (int, error) {
	on, err := mountOf(dir)
	if err != nil {
		return -1, err
	}
	seen, err := s.seen(on.id)
	if err != nil {
		return -1, err
	}
	// From the root of the clone, which is that of the mount.
	rel, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(dir))
	if err != nil {
		return -1, err
	}
	list, _, err := s.mounts.all()
	if err != nil {
		return -1, err
	}
	at := find(list, seen)
	if at == nil {
		return -1, unix.ESTALE
	}
	path := at.Mountpoint + rel
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("enter %s: %w", path, err)
	}
	defer unix.Close(fd) // or else it could not be unmounted
	m, err := mountOf(fd)
	if err != nil {
		return -1, err
	}
	if c, ok := s.clones[m]; ok {
		return unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	// Before the mounts are read: what changes after is noticed.
	s.use(m)
	list, _, err = s.mounts.all()
	if err != nil {
		return -1, err
	}
	if e := find(list, m.id); e == nil || e.Parent != at.ID || e.FSType != at.FSType || e.Root != "/" || e.Mountpoint != path {
		// The guest has mounted something else there, or on the way. As long as that is so, nobody is below.
		return unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 0)
	}
	c, err := clone(fd, path)
	if err != nil {
		return -1, err
	}
	s.clones[m] = c
	return unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
}

func (s *submounts) use(m mounted) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used[m] = true
}

// clone clones the mount on which fd is.
func clone(fd int, path string) (c submount, err error) {
	c.fd, err = unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return c, fmt.Errorf("clone %s: %w", path, err)
	}
	if err = private(c.fd); err == nil {
		var m mounted
		m, err = mountOf(c.fd)
		c.id = m.id
	}
	if err != nil {
		unix.Close(c.fd)
		return c, fmt.Errorf("clone of %s: %w", path, err)
	}
	return c, nil
}

// seen returns the mount that a clone, or the mount itself, is for others.
func (s *submounts) seen(id int) (int, error) {
	for of, c := range s.clones {
		if c.id == id {
			return of.id, nil
		}
	}
	top, err := mountOf(s.root)
	if err != nil {
		return 0, err
	}
	if top.id != id {
		return 0, unix.ESTALE
	}
	return s.top.id, nil
}

// mountOf returns the mount that fd is on.
func mountOf(fd int) (mounted, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
	if err == nil && st.Mask&unix.STATX_MNT_ID == 0 {
		err = unix.ENOSYS // before Linux 5.8; those have no submounts either
	}
	if err != nil {
		return mounted{}, fmt.Errorf("number of a mount: %w", err)
	}
	return mounted{int(st.Mnt_id), int(st.Dev_major), int(st.Dev_minor)}, nil
}

func find(list []*mountinfo.Info, id int) *mountinfo.Info {
	for _, m := range list {
		if m.ID == id {
			return m
		}
	}
	return nil
}

// watch calls end when a mount that was entered is not there any more, until the function that it returns is called.
func (s *submounts) watch(ctx context.Context, end func()) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var ends sync.WaitGroup
	ends.Go(func() {
		for ctx.Err() == nil {
			list, changed, err := s.mounts.all()
			if err != nil || s.misses(list) {
				end()
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	})
	return func() {
		cancel()
		ends.Wait()
	}
}

// misses reports whether a mount that was entered is not in list.
func (s *submounts) misses(list []*mountinfo.Info) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for m := range s.used {
		if e := find(list, m.id); e == nil || e.Major != m.major || e.Minor != m.minor {
			s.gone = true
		}
	}
	return s.gone
}

// lost reports whether watch has found that.
func (s *submounts) lost() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone
}
