package replay

// There are kernels (Debian's 6.12.117) that tell DELETE_SELF only when the last dentry of an inode goes, and
// others (6.18) when any does and the link count is zero. What has been put aside keeps the dentry that it had, so
// that one must be what is removed in the end, or must go before.

// lastStaged returns the name in the staging directory by which n, which has no name elsewhere, is to be
// removed.
func (r *Replayer) lastStaged(n *vnode) string {
	names := r.view.staged(n)
	if len(names) == 0 {
		return stageLink
	}
	name := names[len(names)-1]
	r.unstage(n, name)
	if r.view.linksOf(n) != 1 || r.dirs.waits {
		// Its dentry is cached for as long as the one was that n had before.
		r.far.InvalEntry(stagingID, name, true)
	}
	return name
}

// unstage has the kernel forget the names of n in the staging directory but for one.
func (r *Replayer) unstage(n *vnode, but string) {
	for _, name := range r.view.staged(n) {
		if name != but {
			// In this order: an agent is sent to the superblock where the name is.
			r.far.InvalEntry(stagingID, name, false)
			r.view.doubt(stagingID, name)
		}
	}
}

// staged returns the names of n in the staging directory.
func (v *view) staged(n *vnode) (names []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for e := range n.edgesLocked() {
		if e.parent.id == stagingID {
			names = append(names, e.name)
		}
	}
	return names
}
