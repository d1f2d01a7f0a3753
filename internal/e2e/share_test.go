package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
)

// shareKinds are what SOURCE is in these tests: a second bind mount of the host's directory, and go-fuse's
// loopback file system with caches of a second, which stands for somebody else's share.
var shareKinds = []string{"bind", "loopback"}

// share is a host directory, a server of it, and somebody else's view of it.
type share struct {
	t              testing.TB
	host, src, mnt string
	socket, url    string
	args           []string // of the server
	server         *helper
	foreign        *helper // of a loopback
}

func newShare(t testing.TB, kind string, args ...string) *share {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.FUSE, testenv.Fanotify)
	dirs := place(t, "host/sub", "src", "mnt", "run")
	s := &share{t: t, host: filepath.Dir(dirs[0]), src: dirs[1], mnt: dirs[2], socket: dirs[3] + "/s", args: args}
	s.url = "unix://" + s.socket
	if kind == "bind" {
		check(t, unix.Mount(s.host, s.src, "", unix.MS_BIND, ""))
		t.Cleanup(func() { check(t, unix.Unmount(s.src, 0)) })
	} else {
		bin := filepath.Join(filepath.Dir(bin), "loopback")
		if out, err := exec.Command("go", "build", "-o", bin, "github.com/heraldfs/heraldfs/internal/bench/loopback").CombinedOutput(); err != nil {
			t.Fatalf("build loopback: %v\n%s", err, out)
		}
		s.foreign = startHelper(t, "ready", bin, s.host, s.src)
	}
	s.serve()
	return s
}

// serve starts the server.
func (s *share) serve() {
	s.t.Helper()
	s.server = startHelper(s.t, "msg=listening", bin, append(append([]string{"serve", "--listen", s.url}, s.args...), s.host)...)
}

// helper is a process that a test starts and that prints a word when it is ready.
type helper struct {
	t    testing.TB
	cmd  *exec.Cmd
	out  syncBuffer
	stop func()
}

func startHelper(t testing.TB, word, program string, args ...string) *helper {
	t.Helper()
	h := &helper{t: t, cmd: exec.Command(program, args...)}
	r, w, err := os.Pipe()
	check(t, err)
	h.cmd.Stdout, h.cmd.Stderr = w, w
	err = h.cmd.Start()
	w.Close()
	check(t, err)
	ready, read := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(read)
		defer r.Close()
		once := sync.OnceFunc(func() { close(ready) })
		for sc := bufio.NewScanner(r); sc.Scan(); {
			fmt.Fprintln(&h.out, sc.Text())
			if strings.Contains(sc.Text(), word) {
				once()
			}
		}
	}()
	h.stop = sync.OnceFunc(func() {
		h.cmd.Process.Signal(unix.SIGTERM)
		<-read
		if err := h.cmd.Wait(); err != nil && !strings.Contains(err.Error(), "killed") {
			t.Errorf("%v ended: %v\n%s", h.cmd.Args, err, h.out.String())
		}
	})
	t.Cleanup(h.stop)
	select {
	case <-ready:
	case <-time.After(patience):
		t.Fatalf("%v does not say %q:\n%s", h.cmd.Args, word, h.out.String())
	}
	return h
}

// kill ends it as a crash does.
func (h *helper) kill() {
	h.cmd.Process.Kill()
	h.stop()
}

// mount mounts the share with events from the server.
func (s *share) mount(args ...string) *daemon {
	s.t.Helper()
	return serve(s.t, s.src, s.mnt, append([]string{"--events", s.url}, args...)...)
}

// said waits for the daemon's log to have a text that often.
func (d *daemon) said(text string, times int) {
	d.t.Helper()
	eventually(d.t, fmt.Sprintf("%d times %q in the log", times, text), func() bool { return strings.Count(d.log.String(), text) >= times })
}

// What the host does is heard in the mount as natively, by a real inotifywait.
func TestShareInotifywait(t *testing.T) {
	for _, kind := range shareKinds {
		t.Run(kind, func(t *testing.T) {
			tool := testenv.NeedTool(t, "inotifywait")
			s := newShare(t, kind)
			d := s.mount()
			plain := place(t, "native/plain/sub")[0]
			plain = filepath.Dir(plain)
			native := start(t, exec.Command(tool, inotifyArgs(plain)...), "Watches established.")
			guest := start(t, exec.Command(tool, inotifyArgs(s.mnt)...), "Watches established.")
			tell(t, false, plain, native, s.host, guest, d.sync)
			equal(t, native.normal(plain), guest.normal(s.mnt))
		})
	}
}

// What is done through the mount is heard once, and what the host does at the same time is not lost.
func TestShareEcho(t *testing.T) {
	for _, kind := range shareKinds {
		for _, origin := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/origin=%t", kind, origin), func(t *testing.T) {
				s := newShare(t, kind, "--origin", "mine=heraldfs", "--origin", "mine=loopback")
				var args []string
				if origin {
					args = []string{"--origin", "mine"}
				}
				d := s.mount(args...)
				plain := filepath.Dir(place(t, "native/plain/sub")[0])
				native, guest := listen(t, plain, notify.DefaultMask, "sub"), listen(t, s.mnt, notify.DefaultMask, "sub")
				for i, st := range script("aside") {
					check(t, st.do(plain))
					check(t, st.do(s.mnt))
					if kind == "bind" && i%2 == 0 {
						continue // also at the guest's own speed
					}
					d.sync()
				}
				d.sync()
				check(t, os.Mkdir(plain+"/fence", 0o755))
				fenced(t, s.host, guest)
				native.wait(".", "CREATE,ISDIR fence")
				compare(t, native, guest)
			})
		}
	}
}

// Host and guest change the same directory in turn.
func TestShareInTurn(t *testing.T) {
	for _, kind := range shareKinds {
		t.Run(kind, func(t *testing.T) {
			s := newShare(t, kind)
			d := s.mount()
			plain := filepath.Dir(place(t, "native/plain/sub")[0])
			native, guest := listen(t, plain, notify.DefaultMask), listen(t, s.mnt, notify.DefaultMask)
			for i, st := range script("aside") {
				at := s.host
				if i%2 == 0 {
					at = s.mnt
				}
				check(t, st.do(plain))
				check(t, st.do(at))
				d.sync()
			}
			check(t, os.Mkdir(plain+"/fence", 0o755))
			fenced(t, s.host, guest)
			native.wait(".", "CREATE,ISDIR fence")
			compare(t, native, guest)
		})
	}
}

// The server is killed and comes back with another numbering: meanwhile files are served and nothing is
// old for longer than a second, and afterwards everything is told that is different.
func TestShareServerRestarts(t *testing.T) {
	for _, kind := range shareKinds {
		t.Run(kind, func(t *testing.T) {
			s := newShare(t, kind)
			for _, name := range []string{"kept", "written", "gone", "moved"} {
				write(t, s.host+"/"+name, "before")
			}
			d := s.mount()
			d.troubled = true // the loss of the server is no secret
			d.said("caught up", 1)
			e := listen(t, s.mnt, notify.DefaultMask, "sub", "gone")
			for _, name := range []string{"kept", "written", "gone", "moved"} {
				if got := read(t, s.mnt+"/"+name); got != "before" {
					t.Errorf("%s: %q", name, got)
				}
			}
			// A comparison takes for new what is hardly older than the last event.
			var st unix.Stat_t
			check(t, unix.Stat(s.host+"/kept", &st))
			eventually(t, "the files to be old", func() bool { return time.Since(time.Unix(st.Ctim.Unix())) > 100*time.Millisecond })
			write(t, s.host+"/last", "before")
			d.sync()
			s.server.kill()
			d.said("no connection to the server", 1)
			write(t, s.host+"/written", "while nobody told")
			write(t, s.host+"/new", "while nobody told")
			check(t, os.Remove(s.host+"/gone"))
			check(t, os.Rename(s.host+"/moved", s.host+"/sub/moved"))
			eventually(t, "the guest to see it without a server", func() bool {
				b, err := os.ReadFile(s.mnt + "/written")
				_, gone := os.Stat(s.mnt + "/gone")
				_, made := os.Stat(s.mnt + "/new")
				return err == nil && string(b) == "while nobody told" && errors.Is(gone, os.ErrNotExist) && made == nil
			})
			s.serve()
			d.said("caught up", 2)
			d.sync()
			e.wait(".", "MODIFY written")
			e.wait(".", "DELETE gone")
			e.wait("sub", "MOVED_TO moved (1)")
			e.wait("gone", "DELETE_SELF")
			if got := read(t, s.mnt+"/sub/moved"); got != "before" {
				t.Errorf("moved: %q", got)
			}
			fenced(t, s.host, e)
			if e.has(".", "MODIFY kept") {
				t.Error("what did not change was told to have changed")
			}
		})
	}
}

// TestShareLookedAtMeanwhile: what the guest looks at while there is no server has been seen, and still has to be told.
func TestShareLookedAtMeanwhile(t *testing.T) {
	for _, kind := range shareKinds {
		t.Run(kind, func(t *testing.T) {
			s := newShare(t, kind)
			for _, name := range []string{"kept", "old"} {
				write(t, s.host+"/"+name, "before")
			}
			d := s.mount()
			d.troubled = true // the loss of the server is no secret
			d.said("caught up", 1)
			e := listen(t, s.mnt, notify.DefaultMask, "sub")
			for _, name := range []string{"kept", "old"} {
				read(t, s.mnt+"/"+name)
			}
			var st unix.Stat_t
			check(t, unix.Stat(s.host+"/kept", &st))
			eventually(t, "the files to be old", func() bool { return time.Since(time.Unix(st.Ctim.Unix())) > 100*time.Millisecond })
			write(t, s.host+"/last", "before")
			d.sync()
			s.server.kill()
			d.said("no connection to the server", 1)
			write(t, s.host+"/new", "while nobody told")
			check(t, os.Mkdir(s.host+"/newdir", 0o755))
			check(t, os.Rename(s.host+"/old", s.host+"/renamed"))
			write(t, s.host+"/brief", "comes and goes")
			eventually(t, "the guest to see it without a server", func() bool {
				for _, name := range []string{"new", "newdir", "renamed", "brief"} {
					if _, err := os.Stat(s.mnt + "/" + name); err != nil {
						return false
					}
				}
				_, old := os.Stat(s.mnt + "/old")
				return errors.Is(old, os.ErrNotExist)
			})
			check(t, os.Remove(s.host+"/brief"))
			s.serve()
			d.said("caught up", 2)
			d.sync()
			e.wait(".", "CREATE new")
			e.wait(".", "CREATE,ISDIR newdir")
			e.wait(".", "MOVED_FROM old (1)")
			e.wait(".", "MOVED_TO renamed (1)")
			fenced(t, s.host, e)
			for _, wrong := range []string{"MODIFY kept", "CREATE kept", "DELETE kept", "DELETE last"} {
				if e.has(".", wrong) {
					t.Errorf("%s: it did not change", wrong)
				}
			}
		})
	}
}

// cutter is a link to the server that a test can cut.
type cutter struct {
	to    string
	mu    sync.Mutex
	conns []net.Conn
}

func newCutter(t testing.TB, path, to string) *cutter {
	t.Helper()
	c := &cutter{to: to}
	ln, err := net.Listen("unix", path)
	check(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			a, err := ln.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("unix", c.to)
			if err != nil {
				a.Close()
				continue
			}
			c.mu.Lock()
			c.conns = append(c.conns, a, b)
			c.mu.Unlock()
			for _, p := range [][2]net.Conn{{a, b}, {b, a}} {
				wg.Go(func() {
					io.Copy(p[0], p[1])
					p[0].Close()
					p[1].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		ln.Close()
		c.cut()
		wg.Wait()
	})
	return c
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, nc := range c.conns {
		nc.Close()
	}
	c.conns = nil
}

// The connection is cut again and again while the host works: no event is lost, none comes twice.
func TestShareLinkIsCut(t *testing.T) {
	for _, kind := range shareKinds {
		t.Run(kind, func(t *testing.T) {
			s := newShare(t, kind)
			link := filepath.Dir(s.socket) + "/link"
			c := newCutter(t, link, s.socket)
			d := serve(t, s.src, s.mnt, "--events", "unix://"+link)
			d.troubled = true
			e := listen(t, s.mnt, notify.Create|notify.Delete|notify.Moves)
			ctx, cancel := context.WithCancel(context.Background())
			var cuts sync.WaitGroup
			cuts.Go(func() {
				for ctx.Err() == nil {
					select {
					case <-ctx.Done():
					case <-time.After(70 * time.Millisecond):
						c.cut()
					}
				}
			})
			const files = 300
			for i := range files {
				name := fmt.Sprintf("%s/f%d", s.host, i)
				write(t, name, "x")
				check(t, os.Rename(name, name+"-renamed"))
				if i%3 == 0 {
					check(t, os.Remove(name+"-renamed"))
				}
				if i%50 == 49 {
					d.sync()
				}
			}
			cancel()
			cuts.Wait()
			d.sync()
			fenced(t, s.host, e)
			for i := range files {
				name := fmt.Sprintf("f%d", i)
				deleted := 0
				if i%3 == 0 {
					deleted = 1
				}
				if n := e.count(".", "CREATE "+name); n != 1 {
					t.Errorf("%s: created %d times", name, n)
				}
				if n := e.count(".", "DELETE "+name+"-renamed"); n != deleted {
					t.Errorf("%s: deleted %d times instead of %d", name, n, deleted)
				}
				if a, b := heardTimes(e, "MOVED_FROM "+name), heardTimes(e, "MOVED_TO "+name+"-renamed"); a != 1 || b != 1 {
					t.Errorf("%s: moved %d and %d times", name, a, b)
				}
			}
		})
	}
}

// A server that says nothing any more, on a connection that stands, is given up for the time being: the guest asks
// SOURCE again, and hears of everything once when the server goes on.
func TestShareSilentServer(t *testing.T) {
	s := newShare(t, "bind")
	d := s.mount()
	d.troubled = true
	write(t, s.host+"/f", "before")
	d.sync()
	e := listen(t, s.mnt, notify.DefaultMask)
	if got := read(t, s.mnt+"/f"); got != "before" {
		t.Errorf("read %q", got)
	}
	stopped := time.Now()
	check(t, s.server.cmd.Process.Signal(unix.SIGSTOP))
	t.Cleanup(func() { _ = s.server.cmd.Process.Signal(unix.SIGCONT) }) // before its end
	write(t, s.host+"/f", "while nobody told")
	eventually(t, "the guest to see it", func() bool { return read(t, s.mnt+"/f") == "while nobody told" })
	if took := time.Since(stopped); took > 15*time.Second {
		t.Errorf("it took %s", took)
	}
	d.said("no connection to the server", 1)
	check(t, s.server.cmd.Process.Signal(unix.SIGCONT))
	d.said("caught up", 2)
	d.sync()
	fenced(t, s.host, e)
	if n := e.count(".", "CLOSE_WRITE f"); n != 1 {
		t.Errorf("the write was told %d times", n)
	}
}

// A server that cannot be had at the start is waited for, and one that refuses is not.
func TestShareServerAtStart(t *testing.T) {
	s := newShare(t, "bind")
	_, said := try(t, mountCommand(s.src, s.mnt, "--events", s.url+"?root=nope"))
	if !strings.Contains(said, "no such root") {
		t.Errorf("a wrong root: %q", said)
	}
	s.server.stop()
	write(t, s.host+"/f", "one")
	d := s.mount()
	d.troubled = true
	e := listen(t, s.mnt, notify.DefaultMask)
	if got := read(t, s.mnt+"/f"); got != "one" {
		t.Errorf("without a server: %q", got)
	}
	write(t, s.host+"/f", "two")
	s.serve()
	d.said("caught up", 1)
	d.sync()
	e.wait(".", "MODIFY f")
	if got := read(t, s.mnt+"/f"); got != "two" {
		t.Errorf("with a server: %q", got)
	}
}

// An event that SOURCE never shows goes out when its time is over, with a record of that, and keeps no other
// one for longer.
func TestShareLate(t *testing.T) {
	s := newShare(t, "bind")
	other := place(t, "other", "mnt")
	check(t, os.WriteFile(other[0]+"/there", []byte("x"), 0o644))
	d := serve(t, other[0], other[1], "--events", s.url, "--settle-timeout=300ms")
	d.troubled = true
	e := listen(t, other[1], notify.DefaultMask)
	begin := time.Now()
	for i := range 5 {
		write(t, fmt.Sprintf("%s/missing-%d", s.host, i), "x")
	}
	write(t, s.host+"/there", "x")
	e.wait(".", "CREATE missing-0")
	e.wait(".", "MODIFY there")
	if took := time.Since(begin); took < 300*time.Millisecond {
		t.Errorf("nothing was waited for: %s", took)
	}
	d.said("ahead of its content", 1)
	d.sync()
	if out := must(t, "status", other[1]); !strings.Contains(out, "ahead of their content") {
		t.Errorf("status does not tell:\n%s", out)
	}
}

// What happens in a directory that the guest does not know is not looked at.
func TestShareUnknown(t *testing.T) {
	s := newShare(t, "loopback")
	d := s.mount()
	e := listen(t, s.mnt, notify.DefaultMask)
	for i := range 20 {
		write(t, fmt.Sprintf("%s/sub/f%d", s.host, i), "x")
	}
	d.sync()
	out := must(t, "status", s.mnt)
	if !regexp.MustCompile(`replayed +0; not told to the guest: [1-9]\d+ unknown`).MatchString(out) {
		t.Errorf("status:\n%s", out)
	}
	fenced(t, s.host, e)
}

// A server that knows directories by path only, as those on other systems do: what it tells is heard, also
// after a directory was renamed.
func TestSharePortable(t *testing.T) {
	for _, kind := range shareKinds {
		t.Run(kind, func(t *testing.T) {
			s := newShare(t, kind, "--watcher=portable")
			d := s.mount()
			e := listen(t, s.mnt, notify.DefaultMask, "sub")
			step := func(err error, watch, text string) {
				t.Helper()
				check(t, err)
				e.wait(watch, text)
			}
			step(os.WriteFile(s.host+"/sub/f", []byte("one"), 0o644), "sub", "CREATE f")
			step(os.WriteFile(s.host+"/sub/f", []byte("two"), 0o644), "sub", "MODIFY f")
			d.sync()
			if got := read(t, s.mnt+"/sub/f"); got != "two" {
				t.Errorf("read %q", got)
			}
			step(os.Rename(s.host+"/sub", s.host+"/renamed"), ".", "MOVED_FROM,ISDIR sub (1)")
			step(os.Remove(s.host+"/renamed/f"), "sub", "DELETE f")
			write(t, s.mnt+"/renamed/own", "x")
			d.sync()
			fenced(t, s.host, e)
			if n := e.count("sub", "CREATE own"); n != 1 {
				t.Errorf("the guest's own file was created %d times", n)
			}
		})
	}
}
