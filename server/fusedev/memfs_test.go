package fusedev

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Node ids of memFS.
const (
	memRoot = 1
	memFile = 2 // /file
	memDir  = 3 // /dir
	memSub  = 4 // /dir/sub
	memNew  = 5 // what MKDIR makes
)

// memFS is a tree of three fixed nodes. The kernel may cache everything for as long as
// it likes.
type memFS struct {
	fuse.RawFileSystem

	mu      sync.Mutex
	content []byte
	counts  map[string]int
	absent  map[string]bool
	// hook, if set, is called at the start of a request without mu held.
	hook func(op string, nodeid uint64, cancel <-chan struct{}) fuse.Status
	ends int
}

func newMemFS() *memFS {
	return &memFS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		content:       []byte("old"),
		counts:        make(map[string]int),
		absent:        make(map[string]bool),
	}
}

const memTimeout = 1 << 20 // seconds

func (m *memFS) enter(op string, nodeid uint64, cancel <-chan struct{}) fuse.Status {
	m.mu.Lock()
	m.counts[op]++
	hook := m.hook
	m.mu.Unlock()
	if hook != nil {
		return hook(op, nodeid, cancel)
	}
	return fuse.OK
}

func (m *memFS) setHook(hook func(string, uint64, <-chan struct{}) fuse.Status) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = hook
}

func (m *memFS) set(content string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.content = []byte(content)
}

func (m *memFS) count(op string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts[op]
}

func (m *memFS) attrLocked(id uint64) fuse.Attr {
	a := fuse.Attr{Ino: id, Mode: fuse.S_IFDIR | 0o755, Nlink: 2}
	if id == memFile {
		a = fuse.Attr{Ino: id, Mode: fuse.S_IFREG | 0o666, Nlink: 1, Size: uint64(len(m.content)), Mtime: 1}
	}
	return a
}

func (m *memFS) String() string { return "memfs" }
func (m *memFS) OnUnmount()     { m.mu.Lock(); m.ends++; m.mu.Unlock() }

func (m *memFS) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if st := m.enter("lookup", h.NodeId, cancel); st != fuse.OK {
		return st
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	names := map[string]uint64{"file": memFile, "dir": memDir}
	if h.NodeId == memDir {
		names = map[string]uint64{"sub": memSub}
	}
	id := names[name]
	if id == 0 || m.absent[name] {
		return fuse.ENOENT
	}
	*out = fuse.EntryOut{NodeId: id, EntryValid: memTimeout, Attr: m.attrLocked(id)}
	if id != memDir {
		out.AttrValid = memTimeout
	}
	return fuse.OK
}

func (m *memFS) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, _ string, out *fuse.EntryOut) fuse.Status {
	if st := m.enter("mkdir", in.NodeId, cancel); st != fuse.OK {
		return st
	}
	*out = fuse.EntryOut{NodeId: memNew, Attr: m.attrLocked(memNew)}
	return fuse.OK
}

func (m *memFS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if st := m.enter("getattr", in.NodeId, cancel); st != fuse.OK {
		return st
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// The directory is never cached, for tests and benchmarks that want requests.
	if in.NodeId != memDir {
		out.AttrValid = memTimeout
	}
	out.Attr = m.attrLocked(in.NodeId)
	return fuse.OK
}

func (m *memFS) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return m.enter("open", in.NodeId, cancel)
}

func (m *memFS) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	return m.enter("opendir", in.NodeId, cancel)
}

func (m *memFS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if st := m.enter("read", in.NodeId, cancel); st != fuse.OK {
		return nil, st
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if in.Offset >= uint64(len(m.content)) {
		return fuse.ReadResultData(nil), fuse.OK
	}
	n := copy(buf, m.content[in.Offset:])
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (m *memFS) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return m.enter("fsync", in.NodeId, cancel)
}

func (m *memFS) Forget(nodeid, _ uint64) { m.enter("forget", nodeid, nil) }

func (m *memFS) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return m.enter("setlkw", in.NodeId, cancel)
}

func (m *memFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: 4096, NameLen: 255}
	return fuse.OK
}
