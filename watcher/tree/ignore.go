//go:build linux

package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/ignore"
	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
)

// What is left out is outside of the roots, as far as the table is concerned: an event there ends with the look-up of
// its directory, a rename to there is one that leaves the roots, one from there comes from outside.

// setIgnore is called before anything is in the table.
func (e *engine) setIgnore(o *Options) {
	e.tab.scope = ignore.Top(o.Ignore)
	if !o.NoIgnoreFiles {
		e.tab.load = e.loadRules
	}
}

// loadRules reads the patterns in a directory. The directory is the one that is there now.
func (e *engine) loadRules(n *node, root int, path string) *ignore.Rules {
	fd, err := e.host.openObject(n.obj)
	if err != nil {
		if fd, err = e.host.openPath(root, path); err != nil {
			return nil
		}
	}
	defer unix.Close(fd)
	return e.scanner.readRules(fd, path)
}

// readRules reads the patterns in the directory dir, called path in messages.
func (s *scanner) readRules(dir int, path string) *ignore.Rules {
	// Neither a symlink nor a FIFO may make us wait or look elsewhere.
	flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := sys.Retry(func() (int, error) { return unix.Openat(dir, ignore.FileName, flags, 0) })
	if err != nil {
		if !gone(err) {
			s.deny(path+"/"+ignore.FileName, err)
		}
		return nil
	}
	f := os.NewFile(uintptr(fd), ignore.FileName)
	defer f.Close()
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	var rules *ignore.Rules
	if err == nil {
		rules, err = ignore.Read(f)
	}
	if err != nil {
		s.deny(path+"/"+ignore.FileName, err)
	}
	return rules
}

// ruled gives n the patterns that a scan has found in it.
func (e *engine) ruled(n *node, sc *scan) {
	if sc.ruled {
		n.rules, n.ruled = sc.rules, true
		e.tab.forgetPath(n)
	}
}

// rulesChanged looks whether ev is about a file of patterns, and has what follows from it done.
func (e *engine) rulesChanged(ev notify.Event) {
	if e.tab.load == nil || ev.IsDir {
		return
	}
	switch ev.Op {
	case notify.OpRename, notify.OpExchange:
		if ev.NewName == ignore.FileName {
			e.reload(ev.NewDir, ev)
		}
	case notify.OpCreate, notify.OpDelete, notify.OpCloseWrite:
	default:
		return
	}
	if ev.Name == ignore.FileName {
		e.reload(ev.Dir, ev)
	}
}

func (e *engine) reload(dir notify.Object, ev notify.Event) {
	n := e.tab.nodes[dir]
	if !e.tab.inside(n) {
		return
	}
	was := n.rules
	n.ruled = false
	e.tab.gen++
	root, path := e.tab.entry(n, ".", true)
	if ev.Op == notify.OpCreate && n.rules.Equal(was) {
		return // it is empty as yet
	}
	if e.marker == nil || e.tab.shallow {
		e.emit(Record{Type: TypeRescan, IsDir: true, Root: root, Path: path, Time: stamp(ev.Time)})
		return
	}
	e.buf = append(e.buf, item{rules: n})
}

// scopeAbove is what is left out of the scan for it.
func (e *engine) scopeAbove(it *item) scanScope {
	var dir *node
	var name string
	if it.retry != nil {
		dir, name = it.retry.parent, it.retry.name
	} else {
		obj, last := target(&it.ev)
		dir, name = e.tab.nodes[obj], last
	}
	if _, path := e.tab.entry(dir, name, true); dir != nil {
		return scanScope{dir.scope, path, e.tab.load != nil}
	}
	return scanScope{}
}

// scanRules walks a directory whose patterns have changed, so that all that is not left out any more is marked.
func (e *engine) scanRules(it *item) error {
	n := it.rules
	it.scan = &scan{vanished: true}
	root, path := e.tab.locate(n)
	if root < 0 {
		return nil
	}
	fd, err := e.host.openPath(root, path)
	if err != nil {
		if gone(err) {
			return nil
		}
		return fmt.Errorf("open %s again: %w", path, err)
	}
	if obj, _, err := sys.ObjectOf(fd); err != nil || obj != n.obj {
		unix.Close(fd)
		return nil // it has moved, and with it its marks
	}
	scope := e.tab.scope
	if n.root < 0 && n.parent != nil {
		scope = n.parent.scope
	}
	it.scan, err = e.scanner.run(context.Background(), fd, path, scanScope{scope, path, true})
	return err
}

// applyRules forgets what is left out now, and enters what is not any more. Of that nobody is told one by one, but to look.
func (e *engine) applyRules(i int) {
	it := &e.buf[i]
	n := it.rules
	root, path := e.tab.entry(n, ".", true)
	if root < 0 || e.tab.nodes[n.obj] != n {
		return
	}
	e.leaveOut(n)
	if it.scan != nil && !it.scan.vanished {
		e.replant(n, it.scan)
	}
	e.emit(Record{Type: TypeRescan, IsDir: true, Root: root, Path: path, Time: time.Now()})
}

func (e *engine) leaveOut(n *node) {
	for _, k := range n.kids {
		if k.root >= 0 {
			continue
		}
		if e.tab.inside(k) {
			e.leaveOut(k)
		} else {
			e.forget(k)
		}
	}
}

// replant enters those directories of a scan that the table does not have.
func (e *engine) replant(n *node, sc *scan) {
	e.ruled(n, sc)
	for _, se := range sc.entries {
		if se.sub == nil {
			continue
		}
		switch k := n.kids[se.name]; {
		case k != nil && k.obj == se.sub.obj:
			e.replant(k, se.sub)
		case k == nil && e.tab.nodes[se.sub.obj] == nil:
			k = &node{root: -1}
			e.tab.place(k, n, se.name)
			e.plant(k, se.sub)
		}
		// Otherwise events on their way tell what came in its place.
	}
}
