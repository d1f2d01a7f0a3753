package virtiofs

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/server/agents"
	"github.com/heraldfs/heraldfs/server/passthrough"
)

// attack is a request that would change the share if it came from anybody else.
type attack struct {
	name string
	op   uint32
	node uint64
	body [][]byte
}

// victims makes the files of the attacks, one for each, and a directory in which the host is busy.
func victims(t *testing.T) string {
	t.Helper()
	dir := testenv.Tmpfs(t)
	for i := range 14 {
		writeFile(t, filepath.Join(dir, fmt.Sprint("v", i)), 10+i)
	}
	err := errors.Join(unix.Setxattr(filepath.Join(dir, "v10"), "user.y", []byte("y"), 0), os.Mkdir(filepath.Join(dir, "vdir"), 0o755),
		os.Mkdir(filepath.Join(dir, "churn"), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// attacks is one on each victim, with what it needs.
func attacks(p *puppet) []attack {
	v := make([]uint64, 14)
	fh := func(i int) uint64 {
		errno, b := p.ask(someThread, 14, v[i], u32s(unix.O_RDWR, 0))
		if errno != 0 {
			p.t.Fatalf("OPEN v%d: %v", i, errno)
		}
		return u64At(b)
	}
	for i := range v {
		v[i] = p.find(1, fmt.Sprint("v", i))
	}
	name := func(s string) []byte { return cstr(s) }
	b := func(parts ...[]byte) [][]byte { return parts }
	return []attack{
		{"unlink", 10, 1, b(name("v0"))},
		{"rmdir", 11, 1, b(name("vdir"))},
		{"rename", 12, 1, b(u64s(1), name("v1"), name("v1x"))},
		{"rename over", 45, 1, b(u64s(1), u32s(0, 0), name("v2"), name("v3"))},
		{"truncate", 4, v[4], b(setattr(1<<3, 0, 0))},
		{"write", opWrite, v[5], b(u64s(fh(5), 0), u32s(4, 0), u64s(0), u32s(0, 0), []byte("evil"))},
		{"fallocate", opFallocate, v[6], b(u64s(fh(6), 0, 9000), u32s(0, 0))},
		{"create", 35, 1, b(u32s(unix.O_RDWR, 0o100644, 0, 0), name("made"))},
		{"mkdir", 9, 1, b(u32s(0o755, 0), name("madedir"))},
		{"mknod", 8, 1, b(u32s(unix.S_IFREG|0o644, 0, 0, 0), name("madenod"))},
		{"symlink", 6, 1, b(name("madesym"), name("v0"))},
		{"link", 13, 1, b(u64s(v[7]), name("madelink"))},
		{"open to truncate", 14, v[8], b(u32s(unix.O_RDWR|unix.O_TRUNC, 0))},
		{"setxattr", opSetxattr, v[9], b(u32s(4, 0, 0, 0), name("user.x"), []byte("evil"))},
		{"removexattr", 24, v[10], b(name("user.y"))},
		{"copy", opCopyFileRange, v[11], b(u64s(fh(11), 0, v[12], fh(12), 0, 6, 0))},
		{"chmod", 4, v[13], b(setattr(1<<0, 0, 0o100777))},
	}
}

func u64At(b []byte) (n uint64) {
	for i := 7; i >= 0; i-- {
		n = n<<8 | uint64(b[i])
	}
	return n
}

// state is everything about dir but its directory churn and the times of access.
func state(t *testing.T, dir string) string {
	t.Helper()
	var s strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == "churn" {
			return fs.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&s, "%s %d %o %d %d %d %d %d %d", path, st.Ino, st.Mode, st.Uid, st.Nlink, st.Size, st.Blocks, st.Mtim.Nano(), st.Ctim.Nano())
		if d.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			list := make([]byte, 256)
			n, err := unix.Llistxattr(path, list)
			if err != nil {
				return err
			}
			fmt.Fprintf(&s, " %q %q", b, list[:n])
		}
		s.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s.String()
}

// TestHostileAgent: an agent that lies, answers too often, never, or floods, in a guest that makes requests of all kinds
// as the replaying thread, changes nothing on the host, delays nobody else, and is replaced by an honest one as if nothing had been.
func TestHostileAgent(t *testing.T) {
	dir := victims(t)
	p := newPuppet(t, dir, agents.ShareOptions{})
	attacks := attacks(p)
	p.find(1, "churn")
	other := dial(t, startServer(t, Options{}, func(Guest) (fuse.RawFileSystem, *fuse.MountOptions, error) {
		fs, err := passthrough.New(dir, passthrough.Options{ForeignPids: true})
		if err != nil {
			return nil, nil, err
		}
		o := fs.MountOptions()
		return closeFS{fs}, &o, nil
	}))
	other.setup(2, featureEventIdx)
	other.qs[1].initFuse()
	p.honest()
	before := state(t, dir)
	check := func(t *testing.T) {
		t.Helper()
		if after := state(t, dir); after != before {
			t.Fatalf("the share was changed:\n%swas\n%s", after, before)
		}
		begin := time.Now()
		lookup(t, other.qs[1], "v0")
		if d := time.Since(begin); d > time.Second {
			t.Errorf("another guest waits %v", d)
		}
	}
	// More than that is in one message: the thread is the agent's until that is answered.
	assault := func(c *protocol.Calls) {
		for _, a := range attacks {
			if errno, _ := p.ask(agentThread, a.op, a.node, a.body...); errno == 0 {
				p.t.Errorf("%s as the agent's thread succeeds", a.name)
			}
		}
		// What the step does itself, at the wrong place and twice.
		for i := range c.Calls {
			for _, dir := range []uint64{1, p.slots[c.Calls[i].Dir]} {
				p.ask(agentThread, 10, dir, cstr(c.Calls[i].Name))
				p.ask(agentThread, 45, dir, u64s(1), u32s(0, 0), cstr(c.Calls[i].Name), cstr("v0"))
				p.ask(agentThread, 45, 1, u64s(dir), u32s(0, 0), cstr("v0"), cstr(c.Calls[i].Name))
			}
		}
	}
	script := "cd churn; echo 1 > f; chmod 600 f; ln f g; mv f h; mkdir d; mv h d/h; rm g d/h; rmdir d; ln -s x l; rm l"
	t.Run("requests", func(t *testing.T) {
		p.t = t
		p.do(script)
		p.fence(assault)
		check(t)
	})
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	heap, goroutines := m.HeapAlloc, runtime.NumGoroutine()
	r := rand.New(rand.NewPCG(3, 4))
	for name, answer := range map[string]func(*protocol.Calls){
		"nothing was done": func(c *protocol.Calls) { p.link.Write(&protocol.Results{ID: c.ID, Done: uint32(len(c.Calls))}) },
		"errors": func(c *protocol.Calls) {
			p.link.Write(&protocol.Results{ID: c.ID, Done: uint32(r.IntN(len(c.Calls))), Errno: 1 + uint32(r.IntN(protocol.MaxErrno))})
		},
		"twice": func(c *protocol.Calls) {
			for range 2 {
				p.link.Write(&protocol.Results{ID: c.ID, Done: uint32(len(c.Calls))})
			}
		},
		"out of order": func(c *protocol.Calls) {
			for _, id := range []uint64{c.ID + 1, c.ID, c.ID - 1} {
				p.link.Write(&protocol.Results{ID: id, Done: uint32(len(c.Calls))})
			}
		},
		"never": func(*protocol.Calls) {},
		"flood of results": func(*protocol.Calls) {
			for i := range uint64(20000) {
				if p.link.Write(&protocol.Results{ID: i, Done: 1}) != nil {
					break
				}
			}
		},
		"flood of pongs": func(*protocol.Calls) {
			for i := range uint64(20000) {
				if p.link.Write(&protocol.Pong{ID: i}) != nil {
					break
				}
			}
		},
		"flood of attaches": func(*protocol.Calls) {
			for i := range uint32(2000) {
				if p.link.Write(&protocol.Attach{Tid: i + 1}) != nil {
					break
				}
			}
		},
		"bytes": func(*protocol.Calls) { p.nc.Write(make([]byte, 4<<20)) },
	} {
		t.Run(name, func(t *testing.T) {
			p.t = t
			p.honest()
			p.do(script)
			for range 20 {
				c, err := p.calls()
				if err != nil {
					break
				}
				if !changes(&c.Calls[len(c.Calls)-1]) {
					p.link.Write(&protocol.Results{ID: c.ID, Done: uint32(len(c.Calls))})
					continue
				}
				answer(c)
			}
			check(t)
		})
	}
	t.Run("honest again", func(t *testing.T) {
		p.t = t
		p.honest()
		check(t)
		p.nc.Close()
		runtime.GC()
		runtime.ReadMemStats(&m)
		if m.HeapAlloc > heap+16<<20 {
			t.Errorf("%d MiB more are in use", (m.HeapAlloc-heap)>>20)
		}
		if n := runtime.NumGoroutine(); n > goroutines+10 {
			t.Errorf("%d goroutines, there were %d", n, goroutines)
		}
	})
	t.Run("attacks are real", func(t *testing.T) {
		p.t = t
		for _, a := range attacks {
			if errno, _ := p.ask(someThread, a.op, a.node, a.body...); errno != 0 {
				t.Errorf("%s as another thread: %v", a.name, errno)
			}
		}
		if state(t, dir) == before {
			t.Error("nothing has changed")
		}
	})
}

// TestGhosts: an agent in a guest that forgets nothing is left once that costs too much, and is welcome when it has forgotten.
func TestGhosts(t *testing.T) {
	dir := testenv.Tmpfs(t)
	const limit = 64
	if err := os.Mkdir(filepath.Join(dir, "churn"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := newPuppet(t, dir, agents.ShareOptions{GhostLimit: limit})
	churn := p.find(1, "churn")
	p.honest()
	p.do(fmt.Sprintf("for i in $(seq %d); do mkdir churn/$i; done", 4*limit))
	err := p.serve(nil, func(*notify.Call) bool { return false })
	var said *protocol.Error
	if !errors.As(err, &said) || !strings.Contains(said.Text, "too many nodes") {
		t.Fatalf("the agent ends with %v", err)
	}
	p.forget(churn)
	p.honest()
	p.do("rmdir churn/1")
	p.fence(nil)
}
