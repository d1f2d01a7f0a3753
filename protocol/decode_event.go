package protocol

import (
	"math"
	"strings"
	"time"
)

func (d *Decoder) events() *Events {
	r, m := &d.r, &Events{}
	r.fields(func(key string) bool {
		switch key {
		case "first":
			m.First = r.uint(math.MaxUint64)
		case "last":
			m.Last = r.uint(math.MaxUint64)
		case "ev":
			d.eventList(m)
		default:
			return false
		}
		return true
	})
	return m
}

func (d *Decoder) eventList(m *Events) {
	n := d.r.arrayLen()
	if n > MaxBatch {
		d.r.fail("too many events")
		return
	}
	// An honest event has at least 8 bytes; the slice grows beyond that only with
	// events that really come.
	m.Events = make([]Event, 0, min(n, d.r.src.Len()/8, 1024))
	for ; n > 0 && d.r.err == nil; n-- {
		m.Events = append(m.Events, Event{})
		ev := &m.Events[len(m.Events)-1]
		d.event(ev)
		if !ev.Op.Known() {
			m.Events = m.Events[:len(m.Events)-1]
			m.Skipped++
		}
	}
}

func (d *Decoder) event(ev *Event) {
	r := &d.r
	op := false
	for n := r.mapLen(); n > 0 && r.err == nil; n-- {
		switch string(r.bytes(len(r.buf))) {
		case "s":
			ev.Seq = r.uint(math.MaxUint64)
		case "t":
			if ns := r.int(); ns != 0 {
				ev.Time = time.Unix(0, ns)
			}
		case "o":
			// A number beyond the type is as unknown as any other.
			ev.Op, op = Op(min(r.uint(math.MaxUint64), math.MaxUint8)), true
		case "f":
			ev.From = d.place()
		case "to":
			ev.To = d.place()
		case "d":
			ev.IsDir = r.bool()
		case "c":
			ev.Cookie = uint32(r.uint(math.MaxUint32))
		case "p":
			ev.Pid = r.int32()
		case "id":
			d.identity(&ev.Object)
		case "dfid":
			d.identity(&ev.Dir)
		case "nfid":
			d.identity(&ev.NewDir)
		case "oid":
			d.identity(&ev.Other)
		case "od":
			ev.OtherIsDir = r.bool()
		case "v":
			ev.Verify = r.bool()
		case "u":
			ev.Found = r.bool()
		case "origin":
			ev.Origin = r.text(MaxOrigin)
		case "st":
			ev.FromState = r.state()
		case "ts":
			ev.ToState = r.state()
		default:
			r.skip()
		}
	}
	switch {
	case !op:
		r.fail("event without an operation")
	case !ev.Op.Known():
	case ev.Op == OpRename && (ev.From.Known() || ev.To.Known()):
	case !ev.From.Known(), ev.Op == OpExchange && !ev.To.Known():
		r.fail("event without a place")
	}
}

func (r *reader) int32() int32 {
	n := r.int()
	if n != int64(int32(n)) {
		r.fail("integer out of range")
	}
	return int32(n)
}

func (d *Decoder) place() Place {
	r := &d.r
	if r.null() {
		return Place{}
	}
	if r.arrayLen() != 2 {
		r.fail("place of two elements expected")
		return Place{}
	}
	d.dir = r.dir(d.dir)
	return Place{Dir: d.dir, Name: r.name(d.dir == "")}
}

// name reads one component of a path: a peer must not be able to lead a consumer
// anywhere with it. "." is allowed for the root only.
func (r *reader) name(top bool) string {
	s := r.text(MaxName)
	if !component(s) && (s != "." || !top) {
		r.fail("name")
	}
	return s
}

// dir reads a path of components, "" for the root.
func (r *reader) dir(old string) string {
	s := r.same(MaxPath, old)
	if s == "" || s == old {
		return s
	}
	for part := range strings.SplitSeq(s, "/") {
		if !component(part) {
			r.fail("path")
			break
		}
	}
	return s
}

func component(s string) bool {
	return s != "" && s != "." && s != ".." && strings.IndexByte(s, 0) < 0 && strings.IndexByte(s, '/') < 0
}

// state reads what a place showed; elements of the future are skipped.
func (r *reader) state() State {
	s := State{Known: true}
	if r.null() {
		return s
	}
	n := r.arrayLen()
	if n < 5 {
		r.fail("state of five elements expected")
		return State{}
	}
	s.Exists = true
	s.Ino = r.uint(math.MaxUint64)
	s.Size = r.uint(math.MaxUint64)
	s.Mtime = r.int()
	s.Ctime = r.int()
	s.Same = r.bool()
	for ; n > 5 && r.err == nil; n-- {
		r.skip()
	}
	return s
}

// maxHandle is MAX_HANDLE_SZ of name_to_handle_at(2).
const maxHandle = 128

func (d *Decoder) identity(id *Identity) {
	r := &d.r
	if r.arrayLen() != 4 {
		r.fail("identity of four elements expected")
		return
	}
	id.FS = r.uint(math.MaxUint64)
	id.Type = r.int32()
	id.Handle = r.text(maxHandle)
	mac := r.bytes(MACSize)
	if len(mac) != MACSize || id.Handle == "" {
		r.fail("identity")
	}
	copy(id.MAC[:], mac)
}
