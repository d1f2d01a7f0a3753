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

	// clones are by the number of the mount that was cloned. Only the one that enters reads them.
	clones map[int]submount

	mu   sync.Mutex
	used map[int]bool // the keys of clones
	gone bool
}

// submount is a clone of a mount that others see.
type submount struct{ fd, id int }

func newSubmounts(w *mountWatch, top mountID, root int) *submounts {
	return &submounts{mounts: w, top: top, root: root, clones: make(map[int]submount), used: make(map[int]bool)}
}

func (s *submounts) close() {
	for _, c := range s.clones {
		unix.Close(c.fd)
	}
}

// enter returns a descriptor of what is mounted on dir, which is on a clone of ours, for guest processes.
func (s *submounts) enter(dir int) (int, error) {
	id, err := mountOf(dir)
	if err != nil {
		return -1, err
	}
	seen, err := s.seen(id)
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
	if id, err = mountOf(fd); err != nil {
		return -1, err
	}
	if c, ok := s.clones[id]; ok {
		return unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	// Before the mounts are read: what changes after is noticed.
	s.use(id, true)
	c, err := s.clone(fd, path, id, at)
	if err != nil {
		s.use(id, false)
		return -1, err
	}
	s.clones[id] = c
	return unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
}

func (s *submounts) use(id int, yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if yes {
		s.used[id] = true
	} else {
		delete(s.used, id)
	}
}

// clone clones the mount id, on which fd is, if the kernel has mounted it at path on the mount below.
func (s *submounts) clone(fd int, path string, id int, below *mountinfo.Info) (c submount, err error) {
	list, _, err := s.mounts.all()
	if err != nil {
		return c, err
	}
	// The guest may have mounted something else there, or on the way.
	if m := find(list, id); m == nil || m.Parent != below.ID || m.FSType != below.FSType || m.Root != "/" || m.Mountpoint != path {
		return c, fmt.Errorf("%s is covered by another mount: %w", path, unix.EBUSY)
	}
	c.fd, err = unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return c, fmt.Errorf("clone %s: %w", path, err)
	}
	if err = private(c.fd); err == nil {
		c.id, err = mountOf(c.fd)
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
			return of, nil
		}
	}
	top, err := mountOf(s.root)
	if err != nil {
		return 0, err
	}
	if top != id {
		return 0, unix.ESTALE
	}
	return s.top.id, nil
}

// mountOf returns the number of the mount that fd is on.
func mountOf(fd int) (int, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
	if err == nil && st.Mask&unix.STATX_MNT_ID == 0 {
		err = unix.ENOSYS // before Linux 5.8; those have no submounts either
	}
	if err != nil {
		return 0, fmt.Errorf("number of a mount: %w", err)
	}
	return int(st.Mnt_id), nil
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
	for id := range s.used {
		if find(list, id) == nil {
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
