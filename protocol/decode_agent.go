package protocol

import (
	"fmt"
	"math"

	"github.com/heraldfs/heraldfs/notify"
)

// expectIn reads the next message, which must be a T or an Error.
func expectIn[T Message](d *Decoder) (T, error) {
	var none T
	m, err := d.Decode()
	if err != nil {
		return none, err
	}
	switch m := m.(type) {
	case T:
		return m, nil
	case *Error:
		return none, m
	}
	return none, fmt.Errorf("message of type %d out of turn: %w", m.Type(), ErrProtocol)
}

func (d *Decoder) calls() *Calls {
	r, m := &d.r, &Calls{}
	r.fields(func(key string) bool {
		switch key {
		case "id":
			m.ID = r.uint(math.MaxUint64)
		case "calls":
			n := r.arrayLen()
			if n > MaxCalls {
				r.fail("too many calls")
			}
			m.Calls = m.Calls[:0]
			for ; n > 0 && r.err == nil; n-- {
				var c notify.Call
				d.call(&c)
				m.Calls = append(m.Calls, c)
			}
		default:
			return false
		}
		return true
	})
	return m
}

// call takes any operation: whoever performs calls refuses what it does not know.
func (d *Decoder) call(c *notify.Call) {
	r := &d.r
	r.fields(func(key string) bool {
		switch key {
		case "o":
			c.Op = notify.CallOp(r.uint(math.MaxUint8))
		case "d":
			c.Dir = notify.Slot(r.uint(math.MaxUint32))
		case "n":
			c.Name = r.text(MaxName)
		case "td":
			c.NewDir = notify.Slot(r.uint(math.MaxUint32))
		case "tn":
			c.NewName = r.text(MaxName)
		case "s":
			c.Slot = notify.Slot(r.uint(math.MaxUint32))
		case "m":
			c.Mode = uint32(r.uint(math.MaxUint32))
		case "r":
			c.Rdev = uint32(r.uint(math.MaxUint32))
		default:
			return false
		}
		return true
	})
}

func (d *Decoder) results() *Results {
	r, m := &d.r, &Results{}
	r.fields(func(key string) bool {
		switch key {
		case "id":
			m.ID = r.uint(math.MaxUint64)
		case "done":
			m.Done = uint32(r.uint(MaxCalls))
		case "errno":
			m.Errno = uint32(r.uint(MaxErrno))
		default:
			return false
		}
		return true
	})
	return m
}
