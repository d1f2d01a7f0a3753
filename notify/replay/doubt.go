package replay

import "github.com/heraldfs/heraldfs/notify"

// doubted notes that content changed of something that cannot be told for sure: the source does not
// name objects, and what the name stood for then the guest may know by another one.
func (r *Replayer) doubted(ev *notify.Event, n *vnode, early bool) {
	if ev.Object.IsZero() && (ev.Op == notify.OpModify || ev.Op == notify.OpCloseWrite) && (early || n == nil || n.isGhost()) {
		r.doubt = true
	}
}

// resolveDoubt drops the pages of every file that the guest has opened, if a change of content
// could not be given to one. Seldom, and never with a source that names objects.
func (r *Replayer) resolveDoubt() {
	if !r.doubt {
		return
	}
	r.doubt = false
	for _, id := range r.view.openedFiles() {
		r.far.InvalInode(id, 0, -1)
	}
}

// openedFiles returns the files whose pages the guest may have cached.
func (v *view) openedFiles() []uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	var ids []uint64
	for id, n := range v.nodes.All() {
		if n.opened && n.isReg() && !n.isGhost() {
			ids = append(ids, id)
		}
	}
	return ids
}
