package passthrough

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/heraldfs/heraldfs/notify"
)

// deafMarker marks and hears nothing.
type deafMarker struct{}

func (deafMarker) Mark(notify.Object, int) error { return nil }
func (deafMarker) Unmark(notify.Object)          {}

// A file with several names is not cached where only known directories are watched: by a name
// in another directory it can change without a word.
func TestLinkedFilesAreNotCached(t *testing.T) {
	for _, c := range []struct {
		name   string
		marker notify.Marker
		cached bool
	}{{"directory marks", deafMarker{}, false}, {"filesystem mark", nil, true}} {
		t.Run(c.name, func(t *testing.T) {
			src := t.TempDir()
			file, other := filepath.Join(src, "f"), filepath.Join(src, "g")
			if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
			fs := newFS(t, src, Options{Marker: c.marker, AttrTimeout: time.Hour, EntryTimeout: time.Hour, KeepCache: true})
			look := func(want bool) {
				t.Helper()
				var out fuse.EntryOut
				h := fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}
				if st := fs.Lookup(nil, &h, "f", &out); !st.Ok() {
					t.Fatal(st)
				}
				var opened fuse.OpenOut
				in := fuse.OpenIn{InHeader: fuse.InHeader{NodeId: out.NodeId}}
				if st := fs.Open(nil, &in, &opened); !st.Ok() {
					t.Fatal(st)
				}
				fs.Release(nil, &fuse.ReleaseIn{InHeader: in.InHeader, Fh: opened.Fh})
				kept := opened.OpenFlags&fuse.FOPEN_KEEP_CACHE != 0
				if (out.AttrTimeout() > 0) != want || kept != want {
					t.Errorf("attributes for %v, pages kept: %t, want cached: %t", out.AttrTimeout(), kept, want)
				}
			}
			look(true)
			if err := os.Link(file, other); err != nil {
				t.Fatal(err)
			}
			look(c.cached)
			if err := os.Remove(other); err != nil {
				t.Fatal(err)
			}
			look(true)
		})
	}
}
