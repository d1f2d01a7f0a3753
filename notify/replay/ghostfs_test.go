package replay

import (
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// strictFS fails the test if it is asked about a node that is none of its own.
type strictFS struct {
	fuse.RawFileSystem
	t *testing.T
}

func (f *strictFS) own(what string, nodeid uint64) {
	if ours(nodeid) {
		f.t.Errorf("%s of a ghost was passed on", what)
	}
}

func (f *strictFS) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	f.own("StatFs", h.NodeId)
	out.Bsize = 512
	return fuse.OK
}

func (f *strictFS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	f.own("Readlink", h.NodeId)
	return []byte("target"), fuse.OK
}

func (f *strictFS) Statx(_ <-chan struct{}, in *fuse.StatxIn, _ *fuse.StatxOut) fuse.Status {
	f.own("Statx", in.NodeId)
	return fuse.OK
}

func (f *strictFS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, _ []byte) (uint32, fuse.Status) {
	f.own("ListXAttr", h.NodeId)
	return 7, fuse.OK
}

func (f *strictFS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, _ string, _ []byte) fuse.Status {
	f.own("SetXAttr", in.NodeId)
	return fuse.OK
}

func (f *strictFS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, _ string) fuse.Status {
	f.own("RemoveXAttr", h.NodeId)
	return fuse.OK
}

func (f *strictFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, _ *fuse.DirEntryList) fuse.Status {
	f.own("ReadDir", in.NodeId)
	return fuse.OK
}

func (f *strictFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, _ *fuse.DirEntryList) fuse.Status {
	f.own("ReadDirPlus", in.NodeId)
	return fuse.OK
}

// TestGhostRequests has a guest ask about a ghost that it found, and about something real.
func TestGhostRequests(t *testing.T) {
	f := NewFS(&strictFS{fuse.NewDefaultRawFileSystem(), t})
	ghost := f.view.ghost(true).id
	stale := fuse.Status(syscall.ESTALE)
	for _, c := range []struct {
		what string
		ask  func(h fuse.InHeader) fuse.Status
		want fuse.Status
	}{
		{"statfs", func(h fuse.InHeader) fuse.Status {
			var out fuse.StatfsOut
			st := f.StatFs(nil, &h, &out)
			if out.Bsize != 512 {
				t.Errorf("statfs: blocks of %d bytes", out.Bsize)
			}
			return st
		}, fuse.OK},
		{"readlink", func(h fuse.InHeader) fuse.Status { _, st := f.Readlink(nil, &h); return st }, stale},
		{"statx", func(h fuse.InHeader) fuse.Status {
			var out fuse.StatxOut
			st := f.Statx(nil, &fuse.StatxIn{InHeader: h}, &out)
			if ours(h.NodeId) && (out.Ino != ghost || out.Mode != syscall.S_IFDIR|0o700 || out.Mask == 0) {
				t.Errorf("statx: %+v", out)
			}
			return st
		}, fuse.OK},
		{"listxattr", func(h fuse.InHeader) fuse.Status {
			n, st := f.ListXAttr(nil, &h, nil)
			if ours(h.NodeId) != (n == 0) {
				t.Errorf("listxattr: %d bytes", n)
			}
			return st
		}, fuse.OK},
		{"setxattr", func(h fuse.InHeader) fuse.Status {
			return f.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h}, "user.a", nil)
		}, stale},
		{"removexattr", func(h fuse.InHeader) fuse.Status { return f.RemoveXAttr(nil, &h, "user.a") }, fuse.Status(syscall.ENODATA)},
		{"readdir", func(h fuse.InHeader) fuse.Status { return f.ReadDir(nil, &fuse.ReadIn{InHeader: h}, nil) }, fuse.ENOENT},
		{"readdirplus", func(h fuse.InHeader) fuse.Status { return f.ReadDirPlus(nil, &fuse.ReadIn{InHeader: h}, nil) }, fuse.ENOENT},
	} {
		if st := c.ask(fuse.InHeader{NodeId: ghost}); st != c.want {
			t.Errorf("%s of a ghost: %v, must be %v", c.what, st, c.want)
		}
		if st := c.ask(fuse.InHeader{NodeId: rootID}); !st.Ok() {
			t.Errorf("%s of the root: %v", c.what, st)
		}
	}
}
