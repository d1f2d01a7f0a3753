package passthrough

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

// Unlink implements fuse.RawFileSystem.
func (fs *FS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return fs.remove(h, name, 0)
}

// Rmdir implements fuse.RawFileSystem.
func (fs *FS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return fs.remove(h, name, unix.AT_REMOVEDIR)
}

func (fs *FS) remove(h *fuse.InHeader, name string, flags int) fuse.Status {
	p, dir, err := fs.parent(h.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer dir.Release()
	victim, undo := fs.pinVictim(p, dir.Int(), name, flags == 0)
	mask := notify.Delete
	if flags != 0 {
		mask |= notify.IsDir
		if victim != nil {
			defer fs.expect(victim, ".", notify.DeleteSelf, notify.DeleteSelf|notify.IsDir)()
		}
	}
	defer fs.expect(p, name, mask)()
	if err := unix.Unlinkat(dir.Int(), name, flags); err != nil {
		undo()
		return status(err)
	}
	if flags == 0 {
		fs.settlePin(victim)
	}
	return fuse.OK
}

// Rename implements fuse.RawFileSystem, with the flags of renameat2(2).
func (fs *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	from, oldDir, err := fs.parent(in.NodeId, oldName)
	if err != nil {
		return status(err)
	}
	defer oldDir.Release()
	to, newDir, err := fs.parent(in.Newdir, newName)
	if err != nil {
		return status(err)
	}
	defer newDir.Release()

	moved := fs.knownAt(from, oldDir.Int(), oldName)
	var victim *node
	undo := nop
	exchange := in.Flags&unix.RENAME_EXCHANGE != 0
	switch {
	case exchange:
		victim = fs.knownAt(to, newDir.Int(), newName)
	case in.Flags&unix.RENAME_NOREPLACE == 0:
		victim, undo = fs.pinVictim(to, newDir.Int(), newName, false)
	}
	defer fs.expectRename(from, oldName, to, newName, moved, victim, in.Flags)()
	if err := unix.Renameat2(oldDir.Int(), oldName, newDir.Int(), newName, uint(in.Flags)); err != nil {
		undo()
		return status(err)
	}
	if moved != nil {
		moved.sawAt(to.id, newName)
	}
	if exchange {
		if victim != nil {
			victim.sawAt(from.id, oldName)
		}
		return fuse.OK
	}
	switch {
	case victim == moved: // two names of one object: nothing was removed
		undo()
	case victim != nil && !victim.isDir():
		fs.settlePin(victim)
	}
	return fuse.OK
}

// knownAt returns the node of what is at dir/name, if the guest knows it.
func (fs *FS) knownAt(p *node, dir int, name string) *node {
	raw, err := fs.openPath(dir, name)
	if err != nil {
		return nil
	}
	defer unix.Close(raw)
	return fs.known(p, raw, false)
}

func (fs *FS) expectRename(from *node, oldName string, to *node, newName string, moved, victim *node, flags uint32) func() {
	if fs.opts.Ledger == nil {
		return nop
	}
	var dones []func()
	pair := func(n, from *node, oldName string, to *node, newName string) {
		var dir notify.Mask
		if n != nil {
			dir = n.isDirMask()
			if n.isDir() {
				dones = append(dones, fs.expect(n, ".", notify.MoveSelf, notify.MoveSelf|notify.IsDir))
			}
		}
		dones = append(dones, fs.expect(from, oldName, notify.MovedFrom|dir), fs.expect(to, newName, notify.MovedTo|dir))
	}
	pair(moved, from, oldName, to, newName)
	switch {
	case flags&unix.RENAME_EXCHANGE != 0:
		pair(victim, to, newName, from, oldName)
	case victim != nil && victim.isDir():
		dones = append(dones, fs.expect(victim, ".", notify.DeleteSelf, notify.DeleteSelf|notify.IsDir))
	}
	if flags&unix.RENAME_WHITEOUT != 0 {
		dones = append(dones, fs.expect(from, oldName, notify.Create))
	}
	return func() {
		for _, done := range dones {
			done()
		}
	}
}
