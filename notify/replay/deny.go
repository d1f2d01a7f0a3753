package replay

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Requests that no step ever makes. From the replayer's thread they are refused, since what that does must not
// reach the wrapped file system: an honest kernel does not send them (what it writes back has no thread).

// deny refuses a request if it is the replayer's, and reports whether it did.
func (f *FS) deny(h *fuse.InHeader, what string) bool {
	s := f.mine(h)
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f.refuse(s, what)
	return true
}

// Tmpfile implements fuse.RawFileSystem.
func (f *FS) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if f.deny(&in.InHeader, "tmpfile") {
		return fuse.EIO
	}
	st := f.RawFileSystem.Tmpfile(cancel, in, out)
	if st.Ok() {
		f.view.told(0, "", &out.EntryOut, false, false)
		f.view.opened(out.NodeId)
	}
	return st
}

// Write implements fuse.RawFileSystem.
func (f *FS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	return f.Writev(cancel, in, [][]byte{data})
}

// Writev implements fuse.RawFileSystem.
func (f *FS) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	if f.deny(&in.InHeader, "write") {
		return 0, fuse.EIO
	}
	if f.noOpen {
		f.view.opened(in.NodeId)
	}
	return f.RawFileSystem.Writev(cancel, in, data)
}

// CopyFileRange implements fuse.RawFileSystem.
func (f *FS) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if f.deny(&in.InHeader, "copy_file_range") {
		return 0, fuse.EIO
	}
	return f.RawFileSystem.CopyFileRange(cancel, in)
}

// Fallocate implements fuse.RawFileSystem.
func (f *FS) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if f.deny(&in.InHeader, "fallocate") {
		return fuse.EIO
	}
	return f.RawFileSystem.Fallocate(cancel, in)
}

// SetXAttr implements fuse.RawFileSystem.
func (f *FS) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	switch {
	case f.deny(&in.InHeader, "setxattr"):
		return fuse.EIO
	case ours(in.NodeId):
		return fuse.Status(syscall.ESTALE)
	}
	return f.RawFileSystem.SetXAttr(cancel, in, attr, data)
}

// RemoveXAttr implements fuse.RawFileSystem.
func (f *FS) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, attr string) fuse.Status {
	switch {
	case f.deny(h, "removexattr"):
		return fuse.EIO
	case ours(h.NodeId):
		return fuse.ENODATA
	}
	return f.RawFileSystem.RemoveXAttr(cancel, h, attr)
}
