package passthrough

import "github.com/heraldfs/heraldfs/notify"

func nop() {}

// expect announces what dir's watch will show for name.
func (fs *FS) expect(dir *node, name string, masks ...notify.Mask) (done func()) {
	if fs.opts.Ledger == nil {
		return nop
	}
	return fs.opts.Ledger.Expect(dir.object(), name, masks...)
}

// expectOn announces events on n under the name that it was last seen under, and
// if n is a directory, on its own watch too.
func (fs *FS) expectOn(n *node, masks ...notify.Mask) (done func()) {
	if fs.opts.Ledger == nil || len(masks) == 0 {
		return nop
	}
	if n.isDir() {
		masks = append([]notify.Mask(nil), masks...)
		for i := range masks {
			masks[i] |= notify.IsDir
		}
	}
	own := nop
	if n.isDir() {
		own = fs.opts.Ledger.Expect(n.object(), ".", masks...)
	}
	parent, name := n.hint()
	p := fs.nodes.get(parent)
	if p == nil || name == "" {
		return own
	}
	at := fs.opts.Ledger.Expect(p.object(), name, masks...)
	if !n.isDir() {
		return at
	}
	return func() { at(); own() }
}
