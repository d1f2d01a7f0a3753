package record

// Number sets the seq of the next record that passes the filter; those after it count on
// from there. It is for records that have been numbered elsewhere.
func (w *Writer) Number(seq uint64) { w.seq = seq - 1 }
