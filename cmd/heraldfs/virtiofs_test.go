//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/internal/vmtest"
	"github.com/heraldfs/heraldfs/server/virtiofs"
)

// vfs is a running `heraldfs virtiofs`.
type vfs struct {
	t             *testing.T
	program, run  string
	dir, socket   string
	cmd           *exec.Cmd
	log           bytes.Buffer
	ended         chan error
	notifications *net.UnixConn
}

// buildStatic builds the command as it is released: without C, so that it can confine itself.
func buildStatic(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "heraldfs")
	build(t, program, ".")
	return program
}

func build(t *testing.T, program, pkg string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-o", program, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
}

// startVFS starts it on a new directory, and returns when systemd would have been told that it is ready.
func startVFS(t *testing.T, program string, args ...string) *vfs {
	t.Helper()
	v := prepareVFS(t, program)
	v.start(append(args, v.dir)...)
	v.told("READY=1")
	return v
}

func prepareVFS(t *testing.T, program string) *vfs {
	t.Helper()
	v := &vfs{t: t, program: program, run: t.TempDir(), dir: t.TempDir(), ended: make(chan error, 1)}
	v.socket = filepath.Join(v.run, "s")
	notify := filepath.Join(v.run, "notify")
	var err error
	if v.notifications, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.notifications.Close() })
	return v
}

func (v *vfs) start(args ...string) {
	v.t.Helper()
	v.cmd = exec.Command(v.program, append([]string{"virtiofs", "--socket", v.socket}, args...)...)
	v.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(v.run, "notify"))
	v.cmd.Stderr = &v.log
	if err := v.cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	cmd := v.cmd
	v.t.Cleanup(func() { cmd.Process.Kill() })
	go func() { v.ended <- cmd.Wait() }()
}

// told waits for what systemd is told.
func (v *vfs) told(want string) {
	v.t.Helper()
	buf := make([]byte, 256)
	v.notifications.SetReadDeadline(time.Now().Add(30 * time.Second))
	if n, err := v.notifications.Read(buf); err != nil || string(buf[:n]) != want {
		v.t.Fatalf("systemd: %q, %v; want %q", buf[:n], err, want)
	}
}

// end waits for the end and returns the exit status.
func (v *vfs) end() int {
	v.t.Helper()
	select {
	case <-v.ended:
		return v.cmd.ProcessState.ExitCode()
	case <-time.After(30 * time.Second):
		v.t.Fatal("it does not end")
		return -1
	}
}

// server is the process that serves: the command itself, or its child.
func (v *vfs) server() int {
	v.t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", v.cmd.Process.Pid))
	if err != nil {
		v.t.Fatal(err)
	}
	for _, l := range lists {
		b, err := os.ReadFile(l)
		var pid int
		if _, serr := fmt.Sscan(string(b), &pid); err == nil && serr == nil {
			return pid
		}
	}
	return v.cmd.Process.Pid
}

// TestVirtiofs is the command with a guest: ready when systemd is told so, both ways, and a clean end, in
// each sandbox.
func TestVirtiofs(t *testing.T) {
	vmtest.Need(t)
	program := buildStatic(t)
	modes := []string{"namespace", "chroot", "landlock", "none"}
	served := map[string]*vfs{}
	var shares []vmtest.Share
	for _, mode := range modes {
		args := []string{"--cache", "never"}
		if mode != "namespace" { // the default
			args = append(args, "--sandbox", mode)
		}
		served[mode] = startVFS(t, program, args...)
		if mode == "namespace" || mode == "chroot" {
			shares = append(shares, vmtest.Share{Socket: served[mode].socket, Tag: mode})
		}
	}
	vm := vmtest.Start(t, vmtest.Options{Shares: shares})
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			v := served[mode]
			v.t = t
			if err := os.WriteFile(filepath.Join(v.dir, "f"), []byte("host"), 0o644); err != nil {
				t.Fatal(err)
			}
			confined(t, v, mode)
			if mode == "namespace" || mode == "chroot" {
				vm.Use(t)
				vm.Mount(mode, "/mnt")
				if got := vm.Run("cat /mnt/f; echo -n guest > /mnt/g; mkdir /mnt/posix; guestd posix /mnt/posix; rm -r /mnt/posix; umount /mnt"); got != "host" {
					t.Errorf("in the guest: %q", got)
				}
				if got, err := os.ReadFile(filepath.Join(v.dir, "g")); err != nil || string(got) != "guest" {
					t.Errorf("on the host: %q, %v", got, err)
				}
			}
			if err := v.cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			v.told("STOPPING=1")
			if code := v.end(); code != 0 {
				t.Errorf("exit %d\n%s", code, &v.log)
			}
			if _, err := os.Lstat(v.socket); err == nil || strings.Contains(v.log.String(), "level=ERROR") {
				t.Errorf("socket: %v; log:\n%s", err, &v.log)
			}
		})
	}
}

// confined looks from outside at what the serving process has.
func confined(t *testing.T, v *vfs, mode string) {
	t.Helper()
	pid := v.server()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	const kept = "00000000880000df" // CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID SETGID SETUID MKNOD SETFCAP
	for _, line := range []string{"CapPrm:\t" + kept, "CapEff:\t" + kept, "CapBnd:\t" + kept, "NoNewPrivs:\t1"} {
		if got := strings.Contains(string(status), line+"\n"); got != (mode != "none") {
			t.Errorf("%q: %v", line, got)
		}
	}
	// Every thread is its own.
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("threads: %v, %v", tasks, err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err == nil && strings.Contains(string(b), "NoNewPrivs:\t1") != (mode != "none") {
			t.Errorf("%s is not as the others", task)
		}
	}
	root := fmt.Sprintf("/proc/%d/root", pid)
	_, err = os.Lstat(root + "/etc/passwd")
	if hidden := err != nil; hidden != (mode == "namespace" || mode == "chroot") {
		t.Errorf("/etc/passwd: %v", err)
	}
	if mode != "namespace" {
		return
	}
	var have []string
	err = filepath.WalkDir(root+"/", func(path string, d fs.DirEntry, err error) error {
		path = strings.TrimPrefix(path, root)
		if path == v.dir || strings.HasPrefix(path, "/proc/self/") {
			have = append(have, path)
			if d.IsDir() {
				return fs.SkipDir
			}
		} else if !strings.HasPrefix(v.dir, path) && path != "/proc" && path != "/proc/self" {
			t.Errorf("%s is in its root", path)
		}
		return err
	})
	if want := []string{"/proc/self/fd", "/proc/self/mountinfo", v.dir}; err != nil || !slices.Equal(have, want) {
		t.Errorf("its root has %v, %v; want %v", have, err, want)
	}
	for _, ns := range []string{"mnt", "pid", "net"} {
		ours, err1 := os.Readlink("/proc/self/ns/" + ns)
		its, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err1 != nil || err2 != nil || ours == its {
			t.Errorf("namespace %s: %s, %v; %s, %v", ns, ours, err1, its, err2)
		}
	}
	if err := os.WriteFile(root+"/f", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write into the root: %v", err)
	}
}

// TestVirtiofsKilled: what is left by SIGKILL is no obstacle, and a signal of the child is an error of the parent.
func TestVirtiofsKilled(t *testing.T) {
	testenv.Need(t, testenv.Root)
	v := startVFS(t, buildStatic(t), "--socket-group", "nogroup")
	var st unix.Stat_t
	if err := unix.Lstat(v.socket, &st); err != nil || st.Mode&0o777 != 0o660 || st.Gid != 65534 {
		t.Errorf("--socket-group: %o, %d, %v", st.Mode, st.Gid, err)
	}
	if err := unix.Kill(v.server(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := v.end(); code != 1 || !strings.Contains(v.log.String(), "killed") {
		t.Errorf("the child was killed: exit %d\n%s", code, &v.log)
	}
	if _, err := os.Lstat(v.socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	v.start(v.dir)
	v.told("READY=1")
	v.cmd.Process.Kill()
	v.end()
	if _, err := os.Lstat(v.socket); err != nil {
		t.Errorf("nobody could remove the socket: %v", err)
	}
	v.start(v.dir)
	v.told("READY=1")
	if err := v.cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := v.end(); code != 0 {
		t.Errorf("SIGINT: exit %d\n%s", code, &v.log)
	}
}

// TestVirtiofsFD: who starts us can give us the socket, as libvirt does, with virtiofsd's command line.
func TestVirtiofsFD(t *testing.T) {
	testenv.Need(t, testenv.Root)
	program, dir := buildStatic(t), t.TempDir()
	link := filepath.Join(filepath.Dir(program), virtiofsdName)
	if err := os.Symlink(program, link); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := virtiofs.ListenUnix(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command(link, "--fd=3", "-o", "source="+dir+",cache=always,sandbox=namespace,xattr,no_flock", "--thread-pool-size=64", "-d")
	cmd.ExtraFiles = []*os.File{file}
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	// The connection waits in the socket's queue until it is accepted, so nothing has to be waited for before.
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// VHOST_USER_GET_FEATURES: request 1, version 1, no payload; the answer has 12 + 8 bytes.
	if _, err := c.Write([]byte{1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadFull(c, make([]byte, 20)); err != nil {
		t.Fatalf("no answer: %v", err)
	}
	// virtiofsd ends with its machine.
	c.Close()
	if err := cmd.Wait(); err != nil || !strings.Contains(log.String(), "sandbox=namespace") {
		t.Errorf("%v\n%s", err, &log)
	}
	if out, err := exec.Command(link, "--print-capabilities").Output(); err != nil || !json.Valid(out) {
		t.Errorf("--print-capabilities: %q, %v", out, err)
	}
}

// TestUnits: systemd has nothing to say about the units, and what the backend's unit leaves it is enough for its sandbox.
func TestUnits(t *testing.T) {
	testenv.Need(t, testenv.Root)
	testenv.NeedTool(t, "systemd-analyze", "setpriv")
	program, units := buildStatic(t), t.TempDir()
	build(t, program+"-agent", "../heraldfs-agent") // as make install puts them side by side
	sources, err := filepath.Glob("../../packaging/systemd/*@.*")
	if err != nil || len(sources) < 5 {
		t.Fatalf("%v, %v", sources, err)
	}
	bounding := ""
	for _, s := range sources {
		b, err := os.ReadFile(s)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "/usr/bin/heraldfs", program)
		name := strings.Replace(filepath.Base(s), "@.", "@mnt-x.", 1)
		if err := os.WriteFile(filepath.Join(units, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("systemd-analyze", "--man=no", "verify", filepath.Join(units, name)).CombinedOutput()
		for line := range strings.Lines(string(out)) {
			// It verifies what is wanted by the machine's own units as well.
			if strings.Contains(line, "heraldfs") {
				t.Errorf("%s: %s", name, line)
			}
		}
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if _, set, ok := strings.Cut(text, "CapabilityBoundingSet="); ok && strings.Contains(name, "virtiofs") {
			set, _, _ = strings.Cut(set, "\n")
			bounding = "-all,+" + strings.ToLower(strings.ReplaceAll(strings.ReplaceAll(set, "CAP_", ""), " ", ",+"))
		}
	}
	dir := t.TempDir()
	l, err := virtiofs.ListenUnix(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	c, err := net.Dial("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	c.Close() // --once: it serves this one and ends
	cmd := exec.Command("setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set="+bounding, program, "virtiofs", "--once", "--sandbox=namespace", "--fd=3", dir)
	cmd.ExtraFiles = []*os.File{file}
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "level=WARN") {
		t.Errorf("with %s: %v\n%s", bounding, err, out)
	}
}

func TestVirtiofsd(t *testing.T) {
	for in, want := range map[string]string{
		// libvirt
		"--fd=5 -o source=/a,,b,cache=auto,sandbox=chroot,no_xattr,posix_lock --thread-pool-size=1 -d": "--fd=5 --cache=auto --sandbox=chroot --log-level=debug --announce-submounts=off /a,b",
		// Kata Containers
		"--syslog --cache=metadata --shared-dir=/a --fd=3 --thread-pool-size=1 --announce-submounts": "--cache=auto --fd=3 --announce-submounts=on /a",
		"--syslog -o cache=none -o source=/a --fd=3 -f -o announce_submounts":                        "--cache=never --fd=3 --announce-submounts=on /a",
		// by hand
		"--socket-path /s --shared-dir /a --readonly --tag t --log-level trace --inode-file-handles=mandatory": "--socket=/s --read-only --tag=t --log-level=debug --inode-file-handles=mandatory --announce-submounts=off /a",
		"--socket-path=/s -osource=/a --socket-group kvm --seccomp none --no-readdirplus":                      "--socket=/s --socket-group=kvm --announce-submounts=off /a",
		// What we do not have has to be an error.
		"--fd=3 --uid-map=:0:1000:1: -o source=/a,xattrmap=x": "--fd=3 --uid-map=:0:1000:1: --xattrmap=x --announce-submounts=off /a",
	} {
		got := helperArgs(append([]string{"/usr/lib/heraldfs/virtiofsd"}, strings.Fields(in)...))
		if s := strings.Join(got, " "); s != "virtiofs --once "+want {
			t.Errorf("%s\n  is   %s\n  want virtiofs --once %s", in, s, want)
		}
	}
	var out, errs bytes.Buffer
	if code := run([]string{"virtiofsd", "--fd=99", "--uid-map=:0:1000:1:", "--shared-dir=/"}, &out, &errs); code != 1 || !strings.Contains(errs.String(), "--uid-map") {
		t.Errorf("--uid-map: %d, %s", code, &errs)
	}
}

func TestVirtiofsRefuses(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	for _, c := range []struct {
		want string
		args []string
	}{
		{"--socket is missing", []string{dir}},
		{"needs DIR", []string{"--socket", socket}},
		{"--cache", []string{"--socket", socket, "--cache", "sometimes", dir}},
		{"--inode-file-handles", []string{"--socket", socket, "--inode-file-handles", "maybe", dir}},
		{"--sandbox", []string{"--socket", socket, "--sandbox", "jail", dir}},
		{"--fd is no listening socket", []string{"--fd", "0", dir}},
		{"--queues", []string{"--socket", socket, "--queues", "0", dir}},
		{"--queues 256: give 1 to 255", []string{"--socket", socket, "--queues", "256", dir}},
		{"at most 107 bytes", []string{"--socket", filepath.Join(dir, strings.Repeat("s", 108)), dir}},
		{"no such file", []string{"--socket", socket, filepath.Join(dir, "none")}},
		{"is not a socket", []string{"--socket", dir, dir}},
		{"--mask: only with --agent-listen", []string{"--socket", socket, "--mask", "foo", dir}},
		{"--mask: only with --agent-listen", []string{"--socket", socket, "-e", "all", dir}},
		{"--watcher: only with --agent-listen", []string{"--socket", socket, "--watcher", "auto", dir}},
		{"--tls-ca, --tls-cert, --tls-key: only with --agent-listen", []string{"--socket", socket, "--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a", dir}},
		{"--token-file: only with --agent-listen", []string{"--socket", socket, "--token-file", "t", dir}},
	} {
		var out, errs bytes.Buffer
		code := run(append([]string{"heraldfs", "virtiofs"}, c.args...), &out, &errs)
		if code != 1 || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%q: exit %d, %q; want %q", c.args, code, errs.String(), c.want)
		}
	}
}
