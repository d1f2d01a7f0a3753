package replay_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/inotest"
	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/replay"
	"github.com/heraldfs/heraldfs/server/fusedev"
)

// inodeTree is a minimal replay.Tree over any file system that hands out the host's inode numbers.
type inodeTree struct {
	fuse.RawFileSystem
	mu    sync.Mutex
	nodes map[uint64]notify.Object
	ids   map[notify.Object]uint64
}

func inodeObject(ino uint64) notify.Object {
	return notify.Object{Type: notify.TypeInode, Handle: fmt.Sprint(ino)}
}

func (t *inodeTree) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	st := t.RawFileSystem.Lookup(cancel, h, name, out)
	if st.Ok() {
		t.mu.Lock()
		t.nodes[out.NodeId], t.ids[inodeObject(out.Attr.Ino)] = inodeObject(out.Attr.Ino), out.NodeId
		t.mu.Unlock()
	}
	return st
}

func (t *inodeTree) NodeIDs(dst []uint64, obj notify.Object) []uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if id, ok := t.ids[obj]; ok {
		dst = append(dst, id)
	}
	return dst
}

func (t *inodeTree) Object(nodeid uint64) (notify.Object, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	obj, ok := t.nodes[nodeid]
	return obj, ok
}

func (t *inodeTree) Obtain(obj notify.Object, parent uint64, name string, out *fuse.EntryOut) fuse.Status {
	st := t.Lookup(nil, &fuse.InHeader{NodeId: parent}, name, out)
	if st.Ok() && !obj.IsZero() && inodeObject(out.Attr.Ino) != obj {
		t.Forget(out.NodeId, 1)
		return fuse.ENOENT
	}
	return st
}

func (t *inodeTree) Attr(nodeid uint64, out *fuse.Attr) fuse.Status {
	var a fuse.AttrOut
	st := t.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: nodeid}}, &a)
	*out = a.Attr
	return st
}

func (t *inodeTree) Locate(notify.Object) (notify.Object, string, error) {
	return notify.Object{}, "", notify.ErrNotSupported
}
func (t *inodeTree) Names(uint64, func(string, bool) bool) error { return notify.ErrNotSupported }
func (t *inodeTree) WithFD(uint64, func(int) error) error        { return notify.ErrNotSupported }

// batches is a Source of events that are sent to it.
type batches chan []notify.Event

func (b batches) Run(ctx context.Context, emit func([]notify.Event)) error {
	for {
		select {
		case events := <-b:
			emit(events)
		case <-ctx.Done():
			return nil
		}
	}
}
func (b batches) Close() error { return nil }

// TestLoopback replays over go-fuse's loopback file system.
func TestLoopback(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.FUSE)
	host, mnt, src := t.TempDir(), t.TempDir(), make(batches)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	object := func(name string) notify.Object {
		t.Helper()
		var st unix.Stat_t
		must(unix.Lstat(filepath.Join(host, name), &st))
		return inodeObject(st.Ino)
	}

	// What a daemon adds to have its guests hear the host.
	loopback, err := fs.NewLoopbackRoot(host)
	must(err)
	tree := &inodeTree{RawFileSystem: fs.NewNodeFS(loopback, &fs.Options{}),
		nodes: map[uint64]notify.Object{1: object("")}, ids: map[notify.Object]uint64{object(""): 1}}
	filesystem := replay.NewFS(tree)
	conn, err := fusedev.Mount(mnt, filesystem, fusedev.Options{AllowOther: true, Fuse: fuse.MountOptions{PanicHandler: func(v any) fuse.Status {
		t.Errorf("panic in a handler: %v", v)
		return fuse.EIO
	}}})
	must(err)
	served := make(chan error, 1)
	go func() { served <- conn.Serve(context.Background()) }()
	must(conn.WaitReady(context.Background()))
	root, err := conn.PrivateRoot()
	must(err)
	r, err := replay.New(replay.Config{FS: filesystem, Tree: tree, Notify: conn.Notify(), Source: src, Root: root})
	must(err)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- r.Run(ctx) }()
	<-r.Started()

	rec := inotest.New(t, inotest.Options{Timeout: 5 * time.Second})
	t.Cleanup(func() {
		rec.Close()
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("replayer: %v", err)
		}
		unix.Close(root)
		if err := conn.Close(); err != nil {
			t.Errorf("unmount: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	fence := t.TempDir()
	rec.Watch(mnt, "guest", 0)
	rec.Watch(fence, "fence", 0)

	dir := object("")
	must(os.WriteFile(filepath.Join(host, "f"), []byte("new"), 0o644))
	f := object("f")
	src <- []notify.Event{{Op: notify.OpCreate, Dir: dir, Name: "f", Object: f}, {Op: notify.OpModify, Dir: dir, Name: "f", Object: f},
		{Op: notify.OpCloseWrite, Dir: dir, Name: "f", Object: f}}
	src <- nil
	must(r.Sync(ctx))
	got, err := os.ReadFile(filepath.Join(mnt, "f"))
	if err != nil || string(got) != "new" {
		t.Errorf("read %q, %v", got, err)
	}
	// A watch on the file itself lives as long as its nodeid and generation stay the same.
	rec.Watch(filepath.Join(mnt, "f"), "file", notify.Modify|notify.DeleteSelf|notify.MoveSelf)
	src <- []notify.Event{{Op: notify.OpModify, Dir: dir, Name: "f", Object: f}}
	src <- nil
	must(r.Sync(ctx))
	// Something that the guest has not looked at yet.
	must(os.WriteFile(filepath.Join(host, "h"), []byte("h"), 0o644))
	h := object("h")
	src <- []notify.Event{{Op: notify.OpModify, Dir: dir, Name: "h", Object: h}, {Op: notify.OpAttrib, Dir: dir, Name: "h", Object: h}}
	src <- nil
	must(r.Sync(ctx))
	if got, err := os.ReadFile(filepath.Join(mnt, "h")); err != nil || string(got) != "h" {
		t.Errorf("read %q, %v", got, err)
	}
	must(os.Rename(filepath.Join(host, "f"), filepath.Join(host, "g")))
	src <- []notify.Event{{Op: notify.OpRename, Dir: dir, Name: "f", NewDir: dir, NewName: "g", Object: f}}
	src <- nil
	must(r.Sync(ctx))
	must(os.Remove(filepath.Join(host, "g")))
	src <- []notify.Event{{Op: notify.OpDelete, Dir: dir, Name: "g", Object: f}}
	src <- nil
	must(r.Sync(ctx))
	must(os.Mkdir(filepath.Join(fence, "end"), 0o755))
	var heard []string
	for _, e := range inotest.Fold(rec.WaitFor("end")) {
		heard = append(heard, strings.TrimPrefix(e.String(), "guest "))
	}
	want := `CREATE "f"; MODIFY "f"; CLOSE_WRITE "f"; MODIFY "f"; file MODIFY ""; MODIFY "h"; ATTRIB "h"; ` +
		`MOVED_FROM "f" cookie 1; MOVED_TO "g" cookie 1; file MOVE_SELF ""; file DELETE_SELF ""; file IGNORED ""; DELETE "g"`
	if got := strings.Join(heard, "; "); got != want {
		t.Errorf("heard\n%s\nmust be\n%s", got, want)
	}
	st := filesystem.Stats()
	if st.Unexpected.Load() != 0 || st.Fallbacks.Load() != 0 {
		t.Errorf("%d unexpected, %d fallbacks: %s", st.Unexpected.Load(), st.Fallbacks.Load(), st.LastProblem())
	}
}
