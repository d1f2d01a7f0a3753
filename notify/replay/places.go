package replay

import "github.com/heraldfs/heraldfs/notify"

// placesLimit bounds how many directories' last names are remembered.
const placesLimit = 8192

// places remembers where directories were according to the events so far. fanotify tells an
// ATTRIB of a directory without its name; by the time it is read the directory can be
// elsewhere, and what counts is where it was. Two generations bound it.
type places struct {
	young, old map[notify.Object]placeRef
	// at is the reverse of young. What is renamed over an empty directory takes its place,
	// and the ATTRIB that this gives the old one is no event of a name.
	at map[placeRef]notify.Object
}

type placeRef struct {
	dir  notify.Object
	name string
}

// saw takes an event that has been read.
func (p *places) saw(ev *notify.Event) {
	if ev.Object.IsZero() {
		return
	}
	switch {
	case ev.Op == notify.OpDelete && ev.IsDir:
		p.drop(ev.Object)
	case ev.Op == notify.OpCreate && ev.IsDir:
		p.put(ev.Object, placeRef{ev.Dir, ev.Name})
	case ev.Op == notify.OpRename && ev.IsDir, ev.Op == notify.OpExchange && ev.IsDir:
		p.put(ev.Object, placeRef{ev.NewDir, ev.NewName})
	}
	if ev.Op == notify.OpExchange && ev.NewIsDir && !ev.NewObject.IsZero() {
		p.put(ev.NewObject, placeRef{ev.Dir, ev.Name})
	}
}

func (p *places) put(dir notify.Object, at placeRef) {
	p.drop(dir) // what comes to its old place later does not replace it
	if len(p.young) >= placesLimit {
		p.old, p.young = p.young, nil
	}
	if p.young == nil {
		p.young = make(map[notify.Object]placeRef)
		p.at = make(map[placeRef]notify.Object)
	}
	if was, ok := p.at[at]; ok && was != dir {
		p.drop(was)
	}
	p.young[dir] = at
	p.at[at] = dir
}

func (p *places) drop(dir notify.Object) {
	if at, ok := p.young[dir]; ok && p.at[at] == dir {
		delete(p.at, at)
	}
	delete(p.young, dir)
	delete(p.old, dir)
}

func (p *places) get(dir notify.Object) (placeRef, bool) {
	at, ok := p.young[dir]
	if !ok {
		at, ok = p.old[dir]
	}
	return at, ok
}
