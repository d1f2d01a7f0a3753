//go:build linux

package tree

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// check is a look at the disk after an event that may hide others: the kernel merges equal records that were not
// read yet.
type check struct {
	ev notify.Event
	// here and there are the names of ev.
	here, there nameCheck
	// found is where the renamed directory is.
	found snap
}

// nameCheck is for one name.
type nameCheck struct {
	want   bool // it has to be looked for: no later event is about it
	looked bool // it could be
	exists bool
}

// queueCheck lets what ev, which stood at position i, says be compared with the disk when all that is
// queued has been processed. A name that another event is about by then is left to that.
func (e *engine) queueCheck(i int, ev notify.Event) {
	_, oldRoot, _ := e.at(ev.Dir, ev.Name, ev.IsDir)
	_, root, _ := e.at(ev.NewDir, ev.NewName, ev.IsDir)
	c := &check{ev: ev}
	c.here.want = oldRoot >= 0 && ev.Name != "." && !e.touched(ev.Dir, ev.Name, i)
	c.there.want = root >= 0 && !e.touched(ev.NewDir, ev.NewName, i)
	if c.here.want || c.there.want {
		e.buf = append(e.buf, item{check: c})
	}
}

// look looks. What is found counts if no event that is queued by then contradicts it.
func (e *engine) look(c *check) {
	if n := e.renamedDir(c); n != nil {
		parent, name, err := e.host.where(n.obj)
		if err == nil {
			c.found = snap{parent: parent, name: name, known: true}
			if e.marker == nil {
				e.lookup(parent)
			}
		}
		return
	}
	if c.here.want {
		c.here.exists, c.here.looked = e.exists(c.ev.Dir, c.ev.Name)
	}
	if c.there.want {
		c.there.exists, c.there.looked = e.exists(c.ev.NewDir, c.ev.NewName)
	}
}

// renamedDir returns the directory that c is about, if it is one that the table has.
func (e *engine) renamedDir(c *check) *node {
	if c.ev.Op != notify.OpRename || !c.ev.IsDir || !c.there.want {
		return nil
	}
	return e.child(e.tab.nodes[c.ev.NewDir], c.ev.NewName, c.ev.Object)
}

// exists reports whether dir has an entry name; ok is false if that could not be found out.
func (e *engine) exists(dir notify.Object, name string) (yes, ok bool) {
	n := e.tab.nodes[dir]
	root, path := e.tab.entry(n, ".", true)
	if root < 0 {
		return false, false
	}
	fd, err := e.host.openObject(dir)
	if err != nil {
		if path == "." {
			path = ""
		}
		if fd, err = e.host.openPath(root, path); err != nil {
			return false, false
		}
		// The path is that of this point of the stream; another directory may have it by now.
		if obj, _, err := sys.ObjectOf(fd); err != nil || obj != dir {
			unix.Close(fd)
			return false, false
		}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	switch err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil:
		return true, true
	case gone(err):
		return false, true
	}
	return false, false
}

// applyCheck makes up the difference.
func (e *engine) applyCheck(i int) {
	c := e.buf[i].check
	e.found = true
	defer func() { e.found = false }()
	ev := c.ev
	ev.Time, ev.Pid, ev.Cookie, ev.Verify = time.Now(), 0, 0, false
	n := e.renamedDir(c)
	if n != nil || c.found.known {
		if n != nil && c.found.known {
			e.checkDir(i, n, c.found, &ev)
		}
		return
	}
	_, oldRoot, oldPath := e.at(ev.Dir, ev.Name, ev.IsDir)
	_, root, path := e.at(ev.NewDir, ev.NewName, ev.IsDir)
	// Whether the stream has the names.
	here := ev.Op != notify.OpDelete && ev.Op != notify.OpRename
	there := ev.Op == notify.OpRename || ev.Op == notify.OpExchange
	wrongHere := oldRoot >= 0 && c.here.looked && c.here.exists != here && !e.touched(ev.Dir, ev.Name, i)
	wrongThere := root >= 0 && c.there.looked && c.there.exists != there && !e.touched(ev.NewDir, ev.NewName, i)
	if wrongHere && wrongThere && c.here.exists {
		ev.Dir, ev.NewDir = ev.NewDir, ev.Dir
		e.renamed(&ev, root, path, oldRoot, oldPath)
		return
	}
	if wrongHere {
		if c.here.exists {
			ev.Object = notify.Object{} // nobody has said what it is
		}
		e.record(appearance(c.here.exists), &ev, oldRoot, oldPath)
	}
	if wrongThere {
		ev.Dir, ev.Object = ev.NewDir, notify.Object{}
		e.record(appearance(c.there.exists), &ev, root, path)
	}
}

func appearance(exists bool) Type {
	if exists {
		return TypeCreate
	}
	return TypeDelete
}

// touched reports whether a later event is about the entry.
func (e *engine) touched(dir notify.Object, name string, i int) bool {
	_, yes := firstAfter(e.entries().byDir[dir][name], i)
	return yes
}

// checkDir moves n to where it is on the disk, if no later event does.
func (e *engine) checkDir(i int, n *node, found snap, ev *notify.Event) {
	if n.parent == nil || n.root >= 0 || e.touched(n.parent.obj, n.name, i) || e.touched(found.parent, found.name, i) ||
		(n.parent.obj == found.parent && n.name == found.name) {
		return
	}
	from, name := n.parent, n.name
	oldRoot, oldPath := e.tab.entry(from, name, true)
	to := e.tab.nodes[found.parent]
	root, path := e.tab.entry(to, found.name, true)
	ev.Dir, ev.NewDir = from.obj, found.parent
	e.renamed(ev, oldRoot, oldPath, root, path)
	e.moves++
	if e.marker == nil {
		e.moveNode(n, to, found.name)
		return
	}
	if root < 0 {
		e.forget(n)
	} else {
		e.tab.place(n, to, found.name)
	}
	if oldRoot >= 0 && from.kids[name] == nil {
		// If it was an exchange, another directory is there.
		other := &node{root: -1, untold: true}
		e.tab.place(other, from, name)
		e.unmarked[other] = struct{}{}
	}
}
