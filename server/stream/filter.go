package stream

import (
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
)

// filter is what a subscriber asked for.
type filter struct {
	mask             notify.Mask
	include, exclude []*glob
}

func newFilter(sub *protocol.Subscribe) (*filter, error) {
	f := &filter{mask: sub.Mask}
	if f.mask == 0 {
		f.mask = notify.DefaultMask
	}
	var err error
	if f.include, err = compileGlobs(sub.Include); err != nil {
		return nil, err
	}
	f.exclude, err = compileGlobs(sub.Exclude)
	return f, err
}

func compileGlobs(patterns []string) ([]*glob, error) {
	var list []*glob
	for _, p := range patterns {
		g, err := compileGlob(p)
		if err != nil {
			return nil, err
		}
		list = append(list, g)
	}
	return list, nil
}

// wants reports whether e is to be sent. A gap always is.
func (f *filter) wants(e *entry) bool {
	if e.lost != 0 {
		return true
	}
	if e.op.Notify().Mask()&f.mask == 0 {
		return false
	}
	return f.place(e.from) || e.twoPlaces() && f.place(e.to)
}

func (f *filter) place(p protocol.Place) bool {
	if !p.Known() {
		return false
	}
	if len(f.include) > 0 && !matchAny(f.include, p) {
		return false
	}
	return !matchAny(f.exclude, p)
}

func matchAny(list []*glob, p protocol.Place) bool {
	for _, g := range list {
		if g.match(p) {
			return true
		}
	}
	return false
}
