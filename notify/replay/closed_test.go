package replay

import "testing"

// oneFile is a beside that passes node 1.
type oneFile struct {
	beside
	passing bool
}

func (o *oneFile) Passing(id uint64) bool { return o.passing && id == 1 }

// TestRetold: a CLOSE_WRITE of a file that is passed through is told once for each MODIFY.
func TestRetold(t *testing.T) {
	file := &oneFile{passing: true}
	r := &Replayer{fs: &FS{beside: file}, closed: closedFiles{}}
	want := func(id uint64, retold bool, when string) {
		t.Helper()
		if r.retold(id) != retold {
			t.Errorf("%s: retold is %v", when, !retold)
		}
	}
	want(1, false, "the first")
	want(1, true, "another mount's answer")
	r.closed.written(1)
	want(1, false, "after MODIFY")
	want(2, false, "not passed")
	want(2, false, "not passed, again")
	file.passing = false
	want(1, false, "not passed any more")
	file.passing = true
	want(1, false, "passed again")
	for id := range uint64(closedLimit + 5) {
		r.closed.put(id)
	}
	if len(r.closed) > closedLimit {
		t.Errorf("%d files are remembered", len(r.closed))
	}
	r.fs.beside = nil
	want(1, false, "a file system that passes nothing")
}
