package replay

import (
	"container/list"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// dirLimit is how many directories of the guest mount the replayer keeps open.
const dirLimit = 512

// SlotLimit is how many slots a Replayer uses at most, notify.SlotNone and SlotRoot among them.
const SlotLimit = int(notify.SlotFree) + 1 + dirLimit + 1 + openLimit + 1

// dirCache holds guest directories open, by nodeid: slots of the performer. A
// slot follows its directory through renames. Only the replayer uses it.
type dirCache struct {
	fs      *FS
	do      notify.Performer
	staging notify.Slot
	lru     *list.List // of *openDir, the latest first
	byID    map[uint64]*list.Element
	// fresh are the directories that may not have been opened yet, because the performer puts calls off.
	fresh []uint64
	// waits says that something was put off.
	waits bool
	// free and next are the slots that can be used.
	free []notify.Slot
	next notify.Slot
	call notify.Call
}

type openDir struct {
	id   uint64
	slot notify.Slot
}

func newDirCache(f *FS) *dirCache {
	return &dirCache{fs: f, next: notify.SlotFree, lru: list.New(), byID: make(map[uint64]*list.Element)}
}

// start has the cache use do. Other slots that are in use stay so.
func (c *dirCache) start(do notify.Performer) error {
	c.do = do
	slot, err := c.walk(notify.SlotRoot, c.fs.staging)
	if err != nil {
		c.do = nil
		return fmt.Errorf("replay: open the staging directory: %w", err)
	}
	c.staging = slot
	return nil
}

func (c *dirCache) started() bool { return c.do != nil }

// stop closes all directories, as far as that is still possible.
func (c *dirCache) stop() {
	if !c.started() {
		return
	}
	for id := range c.byID {
		c.drop(id)
	}
	c.close(c.staging)
	c.fresh = c.fresh[:0]
	c.do = nil
}

// perform performs call, which ends what was put off.
func (c *dirCache) perform(call notify.Call) error {
	c.call = call
	return c.performed(c.do.Do(&c.call))
}

// performed takes note that nothing is put off any more.
func (c *dirCache) performed(err error) error {
	c.waits = false
	c.fs.aside.reset()
	if err != nil {
		var earlier *notify.EarlierError
		if errors.As(err, &earlier) {
			for _, id := range c.fresh {
				c.drop(id)
			}
		}
	}
	c.fresh = c.fresh[:0]
	return err
}

// later has call performed before the next one, if not at once.
func (c *dirCache) later(call notify.Call) error {
	c.call = call
	c.waits = true
	return c.do.Later(&c.call)
}

// flush performs what was put off.
func (c *dirCache) flush() error {
	if !c.started() || !c.waits && len(c.fresh) == 0 {
		return nil
	}
	return c.performed(c.do.Flush())
}

// slot returns one that nothing uses.
func (c *dirCache) slot() notify.Slot {
	if n := len(c.free); n > 0 {
		s := c.free[n-1]
		c.free = c.free[:n-1]
		return s
	}
	s := c.next
	c.next++
	return s
}

// unused gives back a slot in which nothing is open.
func (c *dirCache) unused(s notify.Slot) { c.free = append(c.free, s) }

// close closes a slot and gives it back.
func (c *dirCache) close(s notify.Slot) {
	// Whoever is not there any more has closed it.
	_ = c.later(notify.Call{Op: notify.CallClose, Slot: s})
	c.unused(s)
}

func (c *dirCache) walk(dir notify.Slot, name string) (notify.Slot, error) {
	s := c.slot()
	c.call = notify.Call{Op: notify.CallWalk, Dir: dir, Name: name, Slot: s}
	if err := c.do.Later(&c.call); err != nil {
		c.unused(s)
		return notify.SlotNone, err
	}
	return s, nil
}

// open returns the slot of the directory that the guest knows as id.
func (c *dirCache) open(id uint64) (notify.Slot, error) {
	switch id {
	case rootID:
		return notify.SlotRoot, nil
	case stagingID:
		return c.staging, nil
	}
	if e := c.byID[id]; e != nil {
		c.lru.MoveToFront(e)
		return e.Value.(*openDir).slot, nil
	}
	n := c.fs.view.node(id)
	if n == nil {
		return notify.SlotNone, unix.ESTALE
	}
	parent, name, ok := c.fs.view.place(n)
	if !ok {
		return notify.SlotNone, unix.ESTALE
	}
	dir, err := c.open(parent)
	if err != nil {
		return notify.SlotNone, err
	}
	return c.enter(id, dir, name)
}

// enter opens a directory that is known as id.
func (c *dirCache) enter(id uint64, dir notify.Slot, name string) (notify.Slot, error) {
	s, err := c.walk(dir, name)
	if err != nil {
		return notify.SlotNone, err
	}
	c.fresh = append(c.fresh, id)
	c.byID[id] = c.lru.PushFront(&openDir{id, s})
	if c.lru.Len() > dirLimit {
		c.drop(c.lru.Back().Value.(*openDir).id)
	}
	return s, nil
}

// forget takes everything for closed: who had it open is gone.
func (c *dirCache) forget() {
	c.lru.Init()
	clear(c.byID)
	c.fresh, c.free, c.next = c.fresh[:0], c.free[:0], notify.SlotFree
	c.waits, c.do = false, nil
	c.fs.aside.reset()
}

func (c *dirCache) drop(id uint64) {
	if e := c.byID[id]; e != nil {
		c.close(e.Value.(*openDir).slot)
		c.lru.Remove(e)
		delete(c.byID, id)
	}
}

// dropTree closes n and what is below it: an open directory would keep the guest's inode
// alive, and DELETE_SELF waiting.
func (c *dirCache) dropTree(n *vnode) {
	for id := range c.byID {
		if c.fs.view.within(id&^stagedBit, n) {
			c.drop(id)
		}
	}
}

// within reports whether the directory id is n or below it.
func (v *view) within(id uint64, n *vnode) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for at := v.nodes.Get(id); at != nil; {
		if at == n {
			return true
		}
		at = at.lastEdge().parent
	}
	return false
}
