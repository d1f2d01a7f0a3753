package record

import (
	"io"

	"github.com/heraldfs/heraldfs/watcher/tree"
)

// maxBuffer is how much is gathered before it is written.
const maxBuffer = 64 << 10

// Writer encodes records. It is for one goroutine.
type Writer struct {
	w      io.Writer
	enc    encoder
	filter *Filter
	buf    []byte
	seq    uint64
}

// New makes a Writer on w, which gets whole records, many in one call.
func New(w io.Writer, o Options) (*Writer, error) {
	enc, err := newEncoder(&o)
	if err != nil {
		return nil, err
	}
	if o.Filter != nil {
		o.Filter.names = newNamer(o.Roots)
	}
	return &Writer{w: w, enc: enc, filter: o.Filter}, nil
}

// Add encodes r if the filter lets it pass, and reports whether it did.
func (w *Writer) Add(r *tree.Record) (bool, error) {
	if !w.filter.pass(r) {
		return false, nil
	}
	w.seq++
	w.buf = w.enc.append(w.buf, w.seq, r)
	if len(w.buf) < maxBuffer {
		return true, nil
	}
	return true, w.Flush()
}

// Flush writes what was added.
func (w *Writer) Flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	_, err := w.w.Write(w.buf)
	w.buf = w.buf[:0]
	return err
}
