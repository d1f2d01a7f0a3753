package agenttest

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/internal/vmtest"
	"github.com/heraldfs/heraldfs/internal/vmtest/wire"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/replay"
)

func TestMain(m *testing.M) { testenv.LeakMain(m) }

// maxBinary is what the program may measure: a guest has it in its memory.
const maxBinary = 10_000_000

// programs are built as they are released, once below the temporary directory of the run.
var programs = sync.OnceValues(func() (string, error) {
	dir := os.TempDir()
	for _, name := range []string{"heraldfs", "heraldfs-agent"} {
		if err := vmtest.BuildStatic("github.com/heraldfs/heraldfs/cmd/"+name, filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	return dir, nil
})

// bed is a directory, heraldfs virtiofs that shares it, and a guest that mounts it at /mnt.
type bed struct {
	t             testing.TB
	vm            *vmtest.VM
	programs      string
	host, outside string
	socket, port  string
	args          []string
	cmd           *exec.Cmd
	said          *output
	fences        int
}

// newBed boots a guest in which the agent runs.
func newBed(t testing.TB, args ...string) *bed {
	t.Helper()
	return newBedWith(t, func(string) {}, args...)
}

// newBedWith has the host's directory prepared before it is shared.
func newBedWith(t testing.TB, prepare func(host string), args ...string) *bed {
	t.Helper()
	b, o := newHost(t, prepare, args...)
	b.vm = vmtest.Start(t, o)
	b.vm.Mount("share", "/mnt")
	b.startAgent()
	return b
}

// newHost is a bed without its guest, and what that is to be.
func newHost(t testing.TB, prepare func(host string), args ...string) (*bed, vmtest.Options) {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.Fanotify)
	vmtest.Need(t)
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	base := testenv.Tmpfs(t)
	b := &bed{t: t, programs: dir, host: filepath.Join(base, "host"), outside: filepath.Join(base, "outside"), args: args}
	for _, dir := range []string{b.host, b.outside} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	prepare(b.host)
	run, err := os.MkdirTemp("", "agent-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	b.socket, b.port = filepath.Join(run, "s"), filepath.Join(run, "a")
	b.start()
	t.Cleanup(b.stop)
	files := map[string]string{"bin/heraldfs-agent": filepath.Join(dir, "heraldfs-agent"), "bin/heraldfs": filepath.Join(dir, "heraldfs")}
	maps.Copy(files, inotifywait(t))
	modules, err := vmtest.KernelModules(vsockModules()...)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(files, modules)
	return b, vmtest.Options{
		Shares: []vmtest.Share{{Socket: b.socket, Tag: "share", Hotplug: true}},
		Ports:  map[string]string{"org.heraldfs.agent.0": b.port},
		Files:  files,
	}
}

// inotifywait is Debian's, with what it needs, for a guest.
func inotifywait(t testing.TB) map[string]string {
	t.Helper()
	files := map[string]string{}
	for pkg, list := range map[string]map[string][]string{
		"inotify-tools":    {"bin/inotifywait": {"usr/bin/inotifywait"}},
		"libinotifytools0": {"lib/x86_64-linux-gnu/libinotifytools.so.0": {"usr/lib/x86_64-linux-gnu/libinotifytools.so.0"}},
		"libc6": {
			"lib/x86_64-linux-gnu/libc.so.6": {"lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libc.so.6"},
			"lib64/ld-linux-x86-64.so.2":     {"lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"},
		},
	} {
		dir, err := vmtest.DebianPackage(pkg)
		if err != nil {
			t.Fatal(err)
		}
		for name, places := range list {
			for _, p := range places {
				if _, err := os.Stat(filepath.Join(dir, p)); err == nil {
					files[name] = filepath.Join(dir, p)
				}
			}
			if files[name] == "" {
				t.Fatalf("package %s has none of %v", pkg, places)
			}
		}
	}
	return files
}

// start runs heraldfs virtiofs, and returns when it listens.
func (b *bed) start() {
	b.t.Helper()
	b.said = &output{}
	b.cmd = b.serve(b.said, append([]string{"--socket", b.socket, "--agent-listen", "unix://" + b.port, "--log-level=debug"}, append(b.args, b.host)...)...)
}

// serve starts a heraldfs virtiofs, and returns when systemd would have been told that it is ready.
func (b *bed) serve(said *output, args ...string) *exec.Cmd {
	b.t.Helper()
	cmd := exec.Command(filepath.Join(b.programs, "heraldfs"), append([]string{"virtiofs"}, args...)...)
	cmd.Stderr = said
	path := b.socket + ".notify"
	ready, err := listenNotify(path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer ready.Close()
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	ready.SetReadDeadline(time.Now().Add(30 * time.Second))
	buf := make([]byte, 256)
	if n, err := ready.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
		cmd.Process.Kill()
		cmd.Wait()
		b.t.Fatalf("heraldfs virtiofs is not ready: %q, %v\n%s", buf[:n], err, said)
	}
	return cmd
}

// stop ends it.
func (b *bed) stop() {
	b.t.Helper()
	if b.cmd == nil {
		return
	}
	b.end(b.cmd, b.said)
	b.cmd = nil
}

// end ends a heraldfs virtiofs, which must not have met with anything.
func (b *bed) end(cmd *exec.Cmd, said *output) {
	b.t.Helper()
	cmd.Process.Signal(unix.SIGTERM)
	killer := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer killer.Stop()
	if err := cmd.Wait(); err != nil {
		b.t.Errorf("heraldfs virtiofs ended: %v", err)
	}
	if b.t.Failed() {
		b.t.Logf("heraldfs virtiofs said:\n%s", tail(said.String()))
	}
	for _, bad := range []string{"level=ERROR", "panic"} {
		if strings.Contains(said.String(), bad) {
			b.t.Errorf("heraldfs virtiofs said %s:\n%s", bad, tail(said.String()))
		}
	}
}

// server is the process that serves, a child of the one that was started.
func (b *bed) server() (pid int) {
	b.t.Helper()
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", b.cmd.Process.Pid))
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range children {
		text, err := os.ReadFile(c)
		if err == nil {
			_, _ = fmt.Sscan(string(text), &pid)
		}
	}
	if pid == 0 {
		b.t.Fatal("heraldfs virtiofs has no child")
	}
	return pid
}

// agentLog prints what the agent has said, in a file or to systemd.
const agentLog = "tail -n 30 /tmp/agent.log || journalctl -n 60 --no-pager"

func tail(s string) string { return s[max(0, len(s)-8000):] }

// startAgent runs the agent, and returns when it replays.
func (b *bed) startAgent(args ...string) {
	b.t.Helper()
	b.vm.Run("heraldfs-agent --log-level=debug " + strings.Join(args, " ") + " /mnt >>/tmp/agent.log 2>&1 & echo $! > /tmp/agent.pid")
	b.attached()
}

// attached waits until an agent replays: only then can the guest wait for events.
func (b *bed) attached() {
	b.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := b.vm.ReadAttr("/mnt", replay.SyncAttr)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("no agent replays: %v\nagent: %s\nhost: %s", err, b.vm.Run(agentLog), tail(b.said.String()))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// sync returns when all that was done before is told in the guest.
func (b *bed) sync() {
	b.t.Helper()
	if err := b.vm.ReadAttr("/mnt", replay.SyncAttr); err != nil {
		b.t.Fatal(err)
	}
}

// killAgent kills it in any state.
func (b *bed) killAgent() {
	b.t.Helper()
	b.signalAgent("KILL")
}

// signalAgent sends a signal that ends it, and waits for that.
func (b *bed) signalAgent(signal string) {
	b.t.Helper()
	b.vm.Run("p=$(cat /tmp/agent.pid); kill -" + signal + " $p; while readlink /proc/$p/exe > /dev/null; do usleep 10000; done")
}

func (b *bed) path(rel string) string { return filepath.Join(b.host, rel) }

// do runs a shell script in the host's directory.
func (b *bed) do(script string) {
	b.t.Helper()
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = b.host
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("host: %s\n%v\n%s", script, err, out)
	}
}

// fence makes a change in the host's directory that w hears of last, and returns what it heard before.
func (b *bed) fence(w *vmtest.Watch) []string {
	b.t.Helper()
	b.fences++
	name := fmt.Sprintf("fence-%d", b.fences)
	if err := os.Mkdir(b.path(name), 0o755); err != nil {
		b.t.Fatal(err)
	}
	got := show(w.Until(name))
	if err := os.Remove(b.path(name)); err != nil {
		b.t.Fatal(err)
	}
	return got[:len(got)-1]
}

// show writes events as a person would, without those of fences.
func show(events []wire.Event) (out []string) {
	for i, e := range events {
		if strings.HasPrefix(string(e.Name), "fence-") && i < len(events)-1 {
			continue
		}
		s := strings.TrimPrefix(strings.TrimPrefix(e.Dir, "/mnt"), "/") + " " + notify.Mask(e.Mask).String() + " " + string(e.Name)
		out = append(out, strings.TrimSpace(s))
	}
	return out
}

func (b *bed) expect(what string, got []string, want ...string) {
	b.t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		b.t.Errorf("%s: heard\n\t%s\nwant\n\t%s", what, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// output is what a process has said so far; it may say more meanwhile.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func (o *output) Reset() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b.Reset()
}
