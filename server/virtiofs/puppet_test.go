package virtiofs

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/echo"
	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/server/agents"
	"github.com/heraldfs/heraldfs/server/passthrough"
	"github.com/heraldfs/heraldfs/watcher"
)

// A puppet's threads: the one that replays, and any other.
const (
	agentThread = 777
	someThread  = 100
)

// puppet is a guest whose kernel and agent are ours.
type puppet struct {
	t     *testing.T
	top   string // the directory on the host
	path  string // where agents connect
	q     *frontQueue
	link  *protocol.AgentLink
	nc    net.Conn
	slots map[notify.Slot]uint64
	known map[uint64]int // lookups that were not forgotten
}

// newPuppet shares dir with a puppet whose agent has callTimeout for an answer.
func newPuppet(t *testing.T, dir string, callTimeout time.Duration, o agents.ShareOptions) *puppet {
	t.Helper()
	testenv.Need(t, testenv.Root)
	p := &puppet{t: t, top: dir, path: filepath.Join(t.TempDir(), "a"), known: map[uint64]int{}}
	ln, err := net.Listen("unix", p.path)
	if err != nil {
		t.Fatal(err)
	}
	ledger := echo.New(echo.Options{})
	w, err := watcher.Open(watcher.Options{Root: dir, Mask: notify.DefaultMask | notify.Access | notify.Open, DropPid: os.Getpid(), Ledger: ledger})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	o.Dir, o.Events, o.Marker, o.Logger = dir, w, w.Marker, log
	if !w.HasPid {
		o.Ledger = ledger
	}
	o.Agents = agents.New(agents.Options{
		Listen: func(context.Context) (net.Listener, error) { return ln, nil }, CallTimeout: callTimeout, Logger: log,
	})
	share := agents.NewShare(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- share.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the share: %v", err)
		}
	})
	f := dial(t, startServer(t, Options{}, func(Guest) (fuse.RawFileSystem, *fuse.MountOptions, error) {
		return share.NewFS(passthrough.Options{ForeignPids: true})
	}))
	f.setup(2, featureEventIdx)
	p.q = f.qs[1]
	p.q.initFuse()
	return p
}

// do has somebody else run a script in the host's directory.
func (p *puppet) do(script string) {
	p.t.Helper()
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = p.top
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// ask sends a request of a thread of the guest.
func (p *puppet) ask(thread uint32, op uint32, node uint64, body ...[]byte) (unix.Errno, []byte) {
	p.t.Helper()
	in := fuseRequest(op, 9, node, body...)
	binary.LittleEndian.PutUint32(in[32:], thread)
	return p.q.call1(0, in, 4096)
}

func (p *puppet) lookup(thread uint32, dir uint64, name string) (uint64, unix.Errno) {
	p.t.Helper()
	errno, b := p.ask(thread, 1, dir, cstr(name))
	if errno != 0 || len(b) < 8 {
		return 0, errno
	}
	node := binary.LittleEndian.Uint64(b)
	if node == 0 {
		return 0, unix.ENOENT
	}
	p.known[node]++
	return node, 0
}

// find is lookup of what has to be there, by somebody.
func (p *puppet) find(dir uint64, name string) uint64 {
	p.t.Helper()
	n, errno := p.lookup(someThread, dir, name)
	if errno != 0 {
		p.t.Fatalf("LOOKUP %s: %v", name, errno)
	}
	return n
}

func cstr(s string) []byte { return append([]byte(s), 0) }

// connect comes as a new agent, whose link is silent for idle at most.
func (p *puppet) connect(idle time.Duration) {
	p.t.Helper()
	if p.nc != nil {
		p.nc.Close()
	}
	var err error
	if p.nc, err = net.Dial("unix", p.path); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { p.nc.Close() })
	if p.link, err = protocol.OpenAgent(p.t.Context(), p.nc, protocol.Options{IdleTimeout: idle}); err != nil {
		p.t.Fatal(err)
	}
	p.slots = map[notify.Slot]uint64{notify.SlotRoot: 1}
	if err := p.link.Write(&protocol.Attach{Tid: agentThread}); err != nil {
		p.t.Fatal(err)
	}
}

// calls returns the next message of calls.
func (p *puppet) calls() (*protocol.Calls, error) {
	for {
		m, err := p.link.Read()
		if err != nil {
			return nil, err
		}
		switch m := m.(type) {
		case *protocol.Calls:
			return m, nil
		case *protocol.Ping:
			if err := p.link.Write(&protocol.Pong{ID: m.ID}); err != nil {
				return nil, err
			}
		}
	}
}

// serve performs calls as an honest agent in an honest kernel does, up to and with one that until accepts. before, if not
// nil, sees each message first.
func (p *puppet) serve(before func(*protocol.Calls), until func(*notify.Call) bool) error {
	for {
		m, err := p.calls()
		if err != nil {
			return err
		}
		if before != nil {
			before(m)
		}
		tried, err := p.answer(m)
		found := false
		for i := range tried {
			found = found || until(&m.Calls[i])
		}
		if err != nil || found {
			return err
		}
	}
}

// answer performs the calls of a message, up to one that fails, and returns how many were tried.
func (p *puppet) answer(m *protocol.Calls) (tried int, err error) {
	r := protocol.Results{ID: m.ID}
	for i := range m.Calls {
		tried++
		if errno := p.perform(&m.Calls[i]); errno != 0 {
			r.Errno = uint32(errno)
			break
		}
		r.Done++
	}
	return tried, p.link.Write(&r)
}

// honest comes as a new agent and serves until a change on the host has arrived. As a real one it comes again if it is sent
// away: the host may still be at odds with what the one before has said.
func (p *puppet) honest() {
	p.t.Helper()
	for try := 0; ; try++ {
		p.connect(20 * time.Second)
		err := p.fenced(nil)
		if err == nil {
			return
		}
		if try == 10 {
			p.t.Fatalf("no event comes: %v", err)
		}
	}
}

// fence serves until a change that is made on the host now has arrived.
func (p *puppet) fence(before func(*protocol.Calls)) {
	p.t.Helper()
	if err := p.fenced(before); err != nil {
		p.t.Fatalf("no event comes: %v", err)
	}
}

func (p *puppet) fenced(before func(*protocol.Calls)) error {
	p.t.Helper()
	p.do("mkdir churn/fence; rmdir churn/fence")
	return p.serve(before, func(c *notify.Call) bool { return c.Op == notify.CallRmdir && c.Name == "fence" })
}

// changes reports whether a call changes something in the guest's eyes.
func changes(c *notify.Call) bool {
	switch c.Op {
	case notify.CallWalk, notify.CallClose, notify.CallLook, notify.CallStat, notify.CallAsk:
		return false
	}
	return true
}

// perform makes the requests of a call.
func (p *puppet) perform(c *notify.Call) unix.Errno {
	dir, errno := p.slots[c.Dir], unix.Errno(0)
	node := dir
	if c.Name != "" {
		node, errno = p.lookup(agentThread, dir, c.Name)
	}
	send := func(op uint32, node uint64, body ...[]byte) unix.Errno {
		errno, b := p.ask(agentThread, op, node, body...)
		switch {
		case errno != 0:
		case op == 8 || op == 9 || op == 6 || op == 13 || op == 35:
			p.known[binary.LittleEndian.Uint64(b)]++
		}
		return errno
	}
	name := cstr(c.Name)
	made := errno == 0 // what is to be made is there
	switch c.Op {
	case notify.CallClose:
		delete(p.slots, c.Slot)
		return 0
	case notify.CallStat:
		if errno == 0 {
			send(3, node, u32s(0, 0), u64s(0))
		}
		return 0
	case notify.CallAsk:
		if !made {
			send(9, dir, u32s(0, 0), name)
		}
		return 0
	case notify.CallMkdir, notify.CallMknod, notify.CallSymlink:
		if made {
			return unix.EEXIST
		}
	default:
		if errno != 0 && !(c.Op == notify.CallOpen && c.Mode&unix.O_CREAT != 0) {
			return errno
		}
	}
	switch c.Op {
	case notify.CallWalk:
		p.slots[c.Slot] = node
	case notify.CallMkdir:
		return send(9, dir, u32s(c.Mode, 0), name)
	case notify.CallMknod:
		return send(8, dir, u32s(c.Mode, c.Rdev, 0, 0), name)
	case notify.CallSymlink:
		return send(6, dir, name, cstr(c.NewName))
	case notify.CallUnlink:
		return send(10, dir, name)
	case notify.CallRmdir:
		return send(11, dir, name)
	case notify.CallLink:
		return send(13, p.slots[c.NewDir], u64s(node), cstr(c.NewName))
	case notify.CallRename:
		p.lookup(agentThread, p.slots[c.NewDir], c.NewName)
		return send(45, dir, u64s(p.slots[c.NewDir]), u32s(c.Mode, 0), name, cstr(c.NewName))
	case notify.CallTouch:
		return send(4, node, setattr(1<<4|1<<5, 0, 0))
	case notify.CallOpen:
		if errno != 0 {
			return send(35, dir, u32s(c.Mode, 0o600, 0, 0), name)
		}
		return send(14, node, u32s(c.Mode, 0))
	}
	return 0
}

// setattr is the body of SETATTR.
func setattr(valid uint32, size uint64, mode uint32) []byte {
	b := append(u32s(valid, 0), u64s(0, size, 0, 0, 0, 0)...)
	return append(b, u32s(0, 0, 0, mode, 0, 0, 0, 0)...)
}

// forget has the kernel forget all but the nodes that are to be kept.
func (p *puppet) forget(keep ...uint64) {
	p.t.Helper()
	for _, n := range keep {
		delete(p.known, n)
	}
	for node, n := range p.known {
		in := fuseRequest(opForget, 9, node, u64s(uint64(n)))
		p.q.publish(p.q.place(0, in, 0))
		if _, _, ok := p.q.used(deadline); !ok {
			p.t.Fatal("FORGET is not taken")
		}
	}
	clear(p.known)
}
