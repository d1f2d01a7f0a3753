package coalesce

import "github.com/heraldfs/heraldfs/notify"

// maxCarried bounds the records that are kept for the next batch.
const maxCarried = 128

// carried are the renames, told already, of objects that earlier batches left where a rename that is still to be proven may
// have begun: the kernel can have merged that into one of these before it was read. Only an object that was renamed
// more than once can have come back to where it left before, and only of one about which nothing else was told, nothing
// else is to be thought of.

// carriedFor returns raws with what is carried before them, and how much that is.
func (c *Coalescer) carriedFor(raws []notify.Raw) (all []notify.Raw, told int) {
	if len(c.carried) == 0 {
		return raws, 0
	}
	c.joined = append(append(c.joined[:0], c.carried...), raws...)
	return c.joined, len(c.carried)
}

// carry keeps what the batch in m leaves for the next one.
func (c *Coalescer) carry(m *merger) {
	kept := c.spare[:0]
	for i := len(m.raws) - 1; i >= 0 && len(kept) < maxCarried; i-- {
		if o := m.recs[i].obj; o != none && m.raws[i].Mask&notify.Rename != 0 && m.objs[o].mayHaveLeft() {
			kept = append(kept, m.raws[i])
		}
	}
	// They were taken from the end.
	for i, j := 0, len(kept)-1; i < j; i, j = i+1, j-1 {
		kept[i], kept[j] = kept[j], kept[i]
	}
	clear(c.joined)
	c.spare, c.carried = c.carried, kept
	clear(c.spare)
}

// mayHaveLeft reports whether a rename of o from where it is now can have been merged into one that the batch has.
func (o *object) mayHaveLeft() bool {
	return o.nRename > 1 && !o.at.dir.IsZero() && !o.linked && !o.linkCount && !o.proven && !o.over && !o.gone && !o.deleted &&
		o.nDelete == 0 && o.nLates == 0
}

// Settled says that the queue was empty when it was read last, and that the names with Verify may have been compared with the
// disk since: what a merge had hidden until then is known another way.
func (c *Coalescer) Settled() {
	clear(c.carried)
	c.carried = c.carried[:0]
}
