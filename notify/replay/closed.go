package replay

// closedLimit bounds the files whose last CLOSE_WRITE is remembered.
const closedLimit = 1024

// closedFiles are those that were opened for writing and closed beside passthrough, and not written to since.
//
// Such an open reaches the file on the host: everybody else who watches it hears one CLOSE_WRITE more. If that is
// another mount, which does the same, each would make the next for the other. So a second CLOSE_WRITE
// without a MODIFY is not told while the file is passed through.
type closedFiles map[uint64]struct{}

// written takes note of a MODIFY.
func (c closedFiles) written(id uint64) {
	if len(c) > 0 {
		delete(c, id)
	}
}

func (c closedFiles) put(id uint64) {
	if len(c) >= closedLimit {
		clear(c)
	}
	c[id] = struct{}{}
}

// retold reports whether a CLOSE_WRITE of id is passed over, and takes note of it.
func (r *Replayer) retold(id uint64) bool {
	if r.fs.beside == nil || !r.fs.beside.Passing(id) {
		r.closed.written(id)
		return false
	}
	if _, told := r.closed[id]; told {
		return true
	}
	r.closed.put(id)
	return false
}
