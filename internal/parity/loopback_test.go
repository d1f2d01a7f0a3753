package parity

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// tree is go-fuse's loopback of a host directory, asked without a kernel.
type tree struct {
	t    *testing.T
	host string
	root fs.InodeEmbedder
	raw  fuse.RawFileSystem
}

func newTree(t *testing.T) *tree {
	host := t.TempDir()
	root, err := fs.NewLoopbackRoot(host)
	if err != nil {
		t.Fatal(err)
	}
	return &tree{t: t, host: host, root: root, raw: fs.NewNodeFS(root, &fs.Options{})}
}

// lookup is what a kernel asks of a directory that it knows, and returns the nodeid and the inode number of the answer.
func (l *tree) lookup(parent uint64, name string) (nodeid, ino uint64) {
	l.t.Helper()
	var out fuse.EntryOut
	if st := l.raw.Lookup(nil, &fuse.InHeader{NodeId: parent}, name, &out); !st.Ok() {
		l.t.Fatalf("lookup of %s in %d: %v", name, parent, st)
	}
	return out.NodeId, out.Ino
}

// attr is what it answers for a node that the kernel knows.
func (l *tree) attr(nodeid uint64) (*fuse.AttrOut, fuse.Status) {
	var in fuse.GetAttrIn
	in.NodeId = nodeid
	var out fuse.AttrOut
	return &out, l.raw.GetAttr(nil, &in, &out)
}

func (l *tree) path(name string) string { return filepath.Join(l.host, name) }

func (l *tree) mkdir(names ...string) {
	l.t.Helper()
	for _, name := range names {
		if err := os.Mkdir(l.path(name), 0o755); err != nil {
			l.t.Fatal(err)
		}
	}
}

func (l *tree) write(name, text string) {
	l.t.Helper()
	if err := os.WriteFile(l.path(name), []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// mv takes pairs of an old and a new name.
func (l *tree) mv(names ...string) {
	l.t.Helper()
	for i := 0; i < len(names); i += 2 {
		if err := os.Rename(l.path(names[i]), l.path(names[i+1])); err != nil {
			l.t.Fatal(err)
		}
	}
}

// TestLoopbackTree shows why go-fuse's loopback stands for a foreign share only as far as the host does not move what
// it knows: it keeps a tree of names, and learns of a move when its kernel looks the new name up. A server that
// goes by handles or descriptors, as those of NFS and virtiofs, does none of this.
func TestLoopbackTree(t *testing.T) {
	t.Run("a moved file is gone", func(t *testing.T) {
		l := newTree(t)
		l.write("f", "old")
		f, _ := l.lookup(fuse.FUSE_ROOT_ID, "f")
		l.mv("f", "g")
		if _, st := l.attr(f); st != fuse.ENOENT {
			t.Errorf("the file is there under another name, and its attributes are %v", st)
		}
	})
	t.Run("what took the name is taken for the file", func(t *testing.T) {
		l := newTree(t)
		l.write("f", "old")
		f, was := l.lookup(fuse.FUSE_ROOT_ID, "f")
		l.mv("f", "g")
		l.write("f", "another")
		out, st := l.attr(f)
		if !st.Ok() || out.Size != uint64(len("another")) || out.Ino != was {
			t.Errorf("attributes of inode %d, size %d (%v): the other file's under this one's number are expected", out.Ino, out.Size, st)
		}
	})
	t.Run("names below a moved directory are looked for at its old place", func(t *testing.T) {
		l := newTree(t)
		l.mkdir("d", "d/e")
		l.write("d/e/f", "f")
		d, _ := l.lookup(fuse.FUSE_ROOT_ID, "d")
		e, _ := l.lookup(d, "e")
		l.mv("d/e", "e")
		var out fuse.EntryOut
		if st := l.raw.Lookup(nil, &fuse.InHeader{NodeId: e}, "f", &out); st != fuse.ENOENT {
			t.Errorf("a file in a directory that was moved: %v", st)
		}
	})
	t.Run("its tree gets a circle", func(t *testing.T) {
		l := newTree(t)
		l.mkdir("x", "x/y")
		x, _ := l.lookup(fuse.FUSE_ROOT_ID, "x")
		y, _ := l.lookup(x, "y")
		// The two change places, and what bears the old names now leads to the new place.
		l.mv("x/y", "y", "x", "z")
		l.mkdir("x", "x/y")
		l.mv("z", "x/y/x")
		if again, _ := l.lookup(y, "x"); again != x {
			t.Fatal("x is another node")
		}
		in := l.root.EmbeddedInode().GetChild("x")
		_, parent := in.Parent()
		if _, above := parent.Parent(); above != in {
			t.Error("the directory is not above itself")
		}
		// Inode.Path of either goes round for ever now, and takes memory for each round.
	})
}
