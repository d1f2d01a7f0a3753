//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/protocol/transport/transporttest"
)

// process is a heraldfs whose output can be waited for.
type process struct {
	*exec.Cmd
	mu      sync.Mutex
	out     bytes.Buffer
	changed chan struct{}
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out.Write(b)
	close(p.changed)
	p.changed = make(chan struct{})
	return len(b), nil
}

// launch starts a heraldfs, or what cmd is, and ends it with the test.
func launch(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{Cmd: cmd, changed: make(chan struct{})}
	p.Stdout, p.Stderr = p, p
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Process.Signal(syscall.SIGTERM)
		_ = p.Wait()
	})
	return p
}

func heraldfs(args ...string) *exec.Cmd {
	return &exec.Cmd{Path: os.Args[0], Args: append([]string{"heraldfs"}, args...)}
}

// wait returns the submatches of the first match in the output.
func (p *process) wait(t *testing.T, expr string) []string {
	t.Helper()
	re := regexp.MustCompile(expr)
	deadline := time.After(20 * time.Second)
	for {
		p.mu.Lock()
		m, changed := re.FindStringSubmatch(p.out.String()), p.changed
		p.mu.Unlock()
		if m != nil {
			return m
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%s: %s never came in\n%s", p.Args, expr, p.out.String())
		}
	}
}

// TestServeTLS: certificates decide who hears, also which root, and are read again at SIGHUP.
func TestServeTLS(t *testing.T) {
	ours, theirs := transporttest.NewAuthority(t), transporttest.NewAuthority(t)
	src, logs := t.TempDir(), t.TempDir()
	cert, key := ours.Issue(t, "server")
	caBytes, err := os.ReadFile(ours.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	put(t, ca, caBytes)
	server := launch(t, heraldfs("serve", "--listen", "tcp://127.0.0.1:0", "--tls-cert", cert, "--tls-key", key, "--tls-ca", ca,
		"--root", "logs="+logs, "--allow", "logs=ops", src))
	url := server.wait(t, `msg=listening url=(tcp://\S+)`)[1]

	watch := func(a *transporttest.Authority, name, caFile, url string) *process {
		cert, key := a.Issue(t, name)
		return launch(t, heraldfs("watch", "--format=json", "--tls-cert", cert, "--tls-key", key, "--tls-ca", caFile, url))
	}
	alice := watch(ours, "alice", ours.CAFile, url)
	alice.wait(t, `"type":"ready"`)
	watch(ours, "ops", ours.CAFile, url+"?root=logs").wait(t, `"type":"ready"`)
	watch(ours, "bob", ours.CAFile, url+"?root=logs").wait(t, `no such root`)
	watch(theirs, "mallory", ours.CAFile, url).wait(t, `"type":"disconnected"`)
	watch(theirs, "trent", theirs.CAFile, url).wait(t, `"type":"disconnected","error":"[^"]*certificate`)

	// The other authority takes over: who was let in stays, who comes is judged anew.
	otherCert, otherKey := theirs.Issue(t, "server")
	for from, to := range map[string]string{otherCert: cert, otherKey: key, theirs.CAFile: ca} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		put(t, to, b)
	}
	if err := server.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	server.wait(t, "certificates read")
	carol := watch(theirs, "carol", theirs.CAFile, url)
	carol.wait(t, `"type":"ready"`)
	put(t, filepath.Join(src, "file"), nil)
	alice.wait(t, `"type":"create","path":"file"`)
	carol.wait(t, `"type":"create","path":"file"`)
}

func put(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestServeToken(t *testing.T) {
	src, dir := t.TempDir(), t.TempDir()
	right, wrong := filepath.Join(dir, "right"), filepath.Join(dir, "wrong")
	put(t, right, []byte("0123456789abcdef\n"))
	put(t, wrong, []byte("0123456789abcdeX\n"))
	server := launch(t, heraldfs("serve", "--listen", "tcp://127.0.0.1:0", "--token-file", right, src))
	url := server.wait(t, `msg=listening url=(tcp://\S+)`)[1]
	launch(t, heraldfs("watch", "--token-file", wrong, url)).wait(t, "does not know the token")
	good := launch(t, heraldfs("watch", "--format=json", "--token-file", right, url))
	good.wait(t, `"type":"ready"`)
	put(t, filepath.Join(src, "file"), nil)
	good.wait(t, `"path":"file"`)
}

// TestServeUnprivileged runs the whole as a user without rights, on inotify.
func TestServeUnprivileged(t *testing.T) {
	testenv.Need(t, testenv.Root)
	dir, err := os.MkdirTemp("/tmp", "herald")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	src := filepath.Join(dir, "src")
	if err := os.MkdirAll(filepath.Join(src, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, src, filepath.Join(src, "sub")} {
		if err := os.Chown(d, 12345, 12345); err != nil {
			t.Fatal(err)
		}
	}
	exe, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "heraldfs")
	if err := os.WriteFile(path, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	as := func(args ...string) *exec.Cmd {
		cmd := &exec.Cmd{Path: path, Args: append([]string{"heraldfs"}, args...), Dir: dir, Env: append(os.Environ(), "XDG_RUNTIME_DIR="+dir)}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12345}}
		return cmd
	}
	launch(t, as("serve", src)).wait(t, "backend=inotify(?s:.*)msg=listening")
	w := launch(t, as("watch", "--format=json", "unix:"))
	w.wait(t, `"type":"ready"`)
	put(t, filepath.Join(src, "sub", "file"), nil)
	if err := os.Rename(filepath.Join(src, "sub"), filepath.Join(src, "dub")); err != nil {
		t.Fatal(err)
	}
	w.wait(t, `"type":"create","path":"sub/file"`)
	w.wait(t, `"type":"rename","path":"dub","old_path":"sub"`)
}

// TestServeActivation: the sockets of systemd are taken and left where they are, and it is told when all is ready,
// when certificates are read again and when it ends.
func TestServeActivation(t *testing.T) {
	dir, src := t.TempDir(), t.TempDir()
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	file, err := ln.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	notify, err := net.ListenPacket("unixgram", filepath.Join(dir, "notify"))
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	bin, err := exec.LookPath("heraldfs")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// LISTEN_PID is the server's own, which the shell becomes.
	cmd := exec.CommandContext(ctx, "sh", "-c", `LISTEN_PID=$$ exec "$0" serve "$1"`, bin, src)
	cmd.ExtraFiles = []*os.File{file}
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	server := launch(t, cmd)
	if err := notify.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	told := func(want string) {
		t.Helper()
		buf := make([]byte, 256)
		n, _, err := notify.ReadFrom(buf)
		if err != nil || !regexp.MustCompile("^(?:"+want+")$").Match(buf[:n]) {
			t.Fatalf("told %q, %v, want %s\n%s", buf[:n], err, want, server.out.String())
		}
	}
	told("READY=1")
	w := launch(t, heraldfs("watch", "--format=json", fmt.Sprintf("unix://%s/s", dir)))
	w.wait(t, `"type":"ready"`)
	put(t, filepath.Join(src, "file"), nil)
	w.wait(t, `"path":"file"`)
	if err := server.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	told(`RELOADING=1\nMONOTONIC_USEC=\d+\n`)
	told("READY=1")
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	told("STOPPING=1")
	// The socket is systemd's, for the next server.
	if _, err := os.Stat(filepath.Join(dir, "s")); err != nil {
		t.Error(err)
	}
}
