package replay

import (
	"container/list"
	"fmt"

	"golang.org/x/sys/unix"
)

// dirLimit is how many directories of the guest mount the replayer keeps open.
const dirLimit = 512

const walkFlags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// dirCache holds O_PATH descriptors of guest directories, by nodeid. A
// descriptor follows its directory through renames. Only the replayer's thread uses it: the
// descriptors are of its own table.
type dirCache struct {
	fs      *FS
	root    int
	staging int
	lru     *list.List // of *openDir, the latest first
	byID    map[uint64]*list.Element
}

type openDir struct {
	id uint64
	fd int
}

func newDirCache(f *FS) *dirCache {
	return &dirCache{fs: f, root: -1, staging: -1, lru: list.New(), byID: make(map[uint64]*list.Element)}
}

// start gives the cache a descriptor of the mount's root, which stays the caller's.
func (c *dirCache) start(root int) error {
	fd, err := unix.Openat(root, c.fs.staging, walkFlags, 0)
	if err != nil {
		return fmt.Errorf("replay: open the staging directory: %w", err)
	}
	c.root, c.staging = root, fd
	return nil
}

func (c *dirCache) started() bool { return c.root >= 0 }

// stop closes every descriptor of the cache's own.
func (c *dirCache) stop() {
	for id := range c.byID {
		c.drop(id)
	}
	if c.staging >= 0 {
		unix.Close(c.staging)
	}
	c.root, c.staging = -1, -1
}

// open returns a descriptor of the directory that the guest knows as id.
func (c *dirCache) open(id uint64) (int, error) {
	switch id {
	case rootID:
		return c.root, nil
	case stagingID:
		return c.staging, nil
	}
	if e := c.byID[id]; e != nil {
		c.lru.MoveToFront(e)
		return e.Value.(*openDir).fd, nil
	}
	n := c.fs.view.node(id)
	if n == nil {
		return -1, unix.ESTALE
	}
	parent, name, ok := c.fs.view.place(n)
	if !ok {
		return -1, unix.ESTALE
	}
	pfd, err := c.open(parent)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Openat(pfd, name, walkFlags, 0)
	if err != nil {
		return -1, err
	}
	c.byID[id] = c.lru.PushFront(&openDir{id, fd})
	if c.lru.Len() > dirLimit {
		c.drop(c.lru.Back().Value.(*openDir).id)
	}
	return fd, nil
}

func (c *dirCache) drop(id uint64) {
	if e := c.byID[id]; e != nil {
		unix.Close(e.Value.(*openDir).fd)
		c.lru.Remove(e)
		delete(c.byID, id)
	}
}

// dropTree closes the descriptors of n and of what is below it: an open one would
// keep the guest's inode alive, and DELETE_SELF waiting.
func (c *dirCache) dropTree(n *vnode) {
	for id := range c.byID {
		if c.fs.view.within(id, n) {
			c.drop(id)
		}
	}
}

// within reports whether the directory id is n or below it.
func (v *view) within(id uint64, n *vnode) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for at := v.nodes[id]; at != nil; {
		if at == n {
			return true
		}
		if len(at.names) == 0 {
			return false
		}
		at = at.names[len(at.names)-1].parent
	}
	return false
}
