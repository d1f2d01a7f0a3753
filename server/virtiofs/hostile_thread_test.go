package virtiofs

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/server/agents"
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

// TestHostileThread: while a step is under way the replaying thread makes requests of all kinds, and what the step does itself at
// other places and twice: before it is answered truly, and before each kind of lie. Nothing of it is carried out, and another guest is served meanwhile.
func TestHostileThread(t *testing.T) {
	dir := victims(t)
	// No step ends before we have answered it.
	p := newPuppet(t, dir, time.Hour, agents.ShareOptions{})
	attacks := attacks(p)
	p.find(1, "churn")
	other := guestOf(t, dir)
	p.honest()
	before := state(t, dir)
	assault := func(c *protocol.Calls) {
		p.t.Helper()
		for _, a := range attacks {
			if errno, _ := p.ask(agentThread, a.op, a.node, a.body...); errno == 0 {
				p.t.Errorf("%s as the agent's thread succeeds", a.name)
			}
		}
		for i := range c.Calls {
			for _, dir := range []uint64{1, p.slots[c.Calls[i].Dir]} {
				p.ask(agentThread, 10, dir, cstr(c.Calls[i].Name))
				p.ask(agentThread, 45, dir, u64s(1), u32s(0, 0), cstr(c.Calls[i].Name), cstr("v0"))
				p.ask(agentThread, 45, 1, u64s(dir), u32s(0, 0), cstr("v0"), cstr(c.Calls[i].Name))
			}
		}
		lookup(p.t, other, "v0")
		if after := state(p.t, dir); after != before {
			p.t.Fatalf("the share was changed:\n%swas\n%s", after, before)
		}
	}
	t.Run("answered", func(t *testing.T) {
		p.t = t
		p.do("cd churn; echo 1 > f; chmod 600 f; ln f g; mv f h; mkdir d; mv h d/h; rm g d/h; rmdir d; ln -s x l; rm l")
		p.fence(assault)
	})
	lies := lies(p)
	for _, name := range slices.Sorted(maps.Keys(lies)) {
		t.Run(name, func(t *testing.T) {
			p.t = t
			p.honest()
			p.do("mkdir churn/x; rmdir churn/x")
			for {
				c, err := p.calls()
				if err != nil {
					t.Fatalf("the step does not come: %v", err)
				}
				if changes(&c.Calls[len(c.Calls)-1]) {
					assault(c)
					lies[name](c)
					return
				}
				if _, err := p.answer(c); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	t.Run("attacks are real", func(t *testing.T) {
		p.t = t
		p.honest()
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
