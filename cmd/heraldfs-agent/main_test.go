package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/replay"
	"github.com/heraldfs/heraldfs/protocol/transport"
	"github.com/heraldfs/heraldfs/protocol/transport/transporttest"
	"github.com/heraldfs/heraldfs/server/agents"
)

func TestMain(m *testing.M) { testenv.LeakMain(m) }

// limit bounds what takes milliseconds.
const limit = 20 * time.Second

var program = sync.OnceValues(func() (string, error) {
	file := filepath.Join(os.TempDir(), "heraldfs-agent")
	cmd := exec.Command("go", "build", "-o", file, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return string(out), err
	}
	return file, nil
})

// process is a running heraldfs-agent.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	said bytes.Buffer
	done chan error
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	file, err := program()
	if err != nil {
		t.Fatal(file, err)
	}
	p := &process{t: t, cmd: exec.Command(file, args...), done: make(chan error, 1)}
	p.cmd.Stderr = &p.said
	// It says when it listens to signals.
	path := filepath.Join(t.TempDir(), "notify")
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	p.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.done <- p.cmd.Wait() }()
	t.Cleanup(func() { p.cmd.Process.Kill() })
	ready.SetReadDeadline(time.Now().Add(limit))
	buf := make([]byte, 64)
	if n, err := ready.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
		t.Fatalf("the agent is not ready: %q, %v", buf[:n], err)
	}
	return p
}

// end sends a signal, on which it ends well.
func (p *process) end(sig unix.Signal) {
	p.t.Helper()
	p.cmd.Process.Signal(sig)
	select {
	case err := <-p.done:
		if err != nil {
			p.t.Errorf("%v ended it with %v: %s", sig, err, p.said.String())
		}
	case <-time.After(limit):
		p.t.Errorf("%v did not end it", sig)
	}
}

// listen is a host on TCP.
func listen(t *testing.T, url string, sec *transport.Security) (*agents.Host, string) {
	t.Helper()
	if err := sec.Load(); err != nil {
		t.Fatal(err)
	}
	u, err := transport.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := u.Listen(t.Context(), sec)
	if err != nil {
		t.Fatal(err)
	}
	h := agents.New(agents.Options{Listen: func(context.Context) (net.Listener, error) { return ln, nil }, Check: u.Check, Token: sec.Token()})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return h, "tcp://" + ln.Addr().String()
}

func wait(t *testing.T, h *agents.Host, p *process) replay.Agent {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	a, err := h.Wait(ctx)
	if err != nil {
		p.cmd.Process.Kill()
		<-p.done
		t.Fatalf("no agent has come: %v; it said %s", err, p.said.String())
	}
	return a
}

// TestTCP: the program on a TCP connection, with certificates and with a token, serves calls and comes again.
func TestTCP(t *testing.T) {
	ca := transporttest.NewAuthority(t)
	cert, key := ca.Issue(t, "host", net.IPv4(127, 0, 0, 1))
	guestCert, guestKey := ca.Issue(t, "guest")
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("a token of a good length\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		host *transport.Security
		args []string
	}{
		"certificates": {&transport.Security{CertFile: cert, KeyFile: key, CAFile: ca.CAFile},
			[]string{"--tls-cert", guestCert, "--tls-key", guestKey, "--tls-ca", ca.CAFile}},
		"token": {&transport.Security{TokenFile: token}, []string{"--token-file", token}},
	} {
		t.Run(name, func(t *testing.T) {
			mnt := testenv.Tmpfs(t)
			h, url := listen(t, "tcp://127.0.0.1:0", c.host)
			p := start(t, append(c.args, "--connect", url, mnt)...)
			for _, dir := range []string{"first", "second"} {
				a := wait(t, h, p)
				walk := notify.Call{Op: notify.CallWalk, Dir: notify.SlotRoot, Name: dir, Slot: notify.SlotFree}
				mkdir := notify.Call{Op: notify.CallMkdir, Dir: notify.SlotRoot, Name: dir, Mode: 0o700}
				made := notify.Call{Op: notify.CallMknod, Dir: notify.SlotFree, Name: "f", Mode: unix.S_IFREG | 0o600}
				if err := a.Do(&mkdir); err != nil {
					t.Fatal(err)
				}
				if err := a.Later(&walk); err != nil {
					t.Fatal(err)
				}
				if err := a.Do(&made); err != nil {
					t.Fatal(err)
				}
				if _, err := os.Lstat(filepath.Join(mnt, dir, "f")); err != nil {
					t.Error(err)
				}
				a.Close(nil) // its channel: another agent is the same program
			}
			wait(t, h, p)
			p.end(unix.SIGTERM)
		})
	}
}

// TestRefused: a host whose certificate is somebody else's gets nothing out of the agent.
func TestRefused(t *testing.T) {
	ours, theirs := transporttest.NewAuthority(t), transporttest.NewAuthority(t)
	cert, key := theirs.Issue(t, "host", net.IPv4(127, 0, 0, 1))
	guestCert, guestKey := ours.Issue(t, "guest")
	sec := &transport.Security{CertFile: cert, KeyFile: key, CAFile: ours.CAFile}
	if err := sec.Load(); err != nil {
		t.Fatal(err)
	}
	u, err := transport.Parse("tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := u.Listen(t.Context(), sec)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p := start(t, "--tls-cert", guestCert, "--tls-key", guestKey, "--tls-ca", ours.CAFile,
		"--connect", "tcp://"+ln.Addr().String(), testenv.Tmpfs(t))
	for range 2 {
		nc, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		nc.SetReadDeadline(time.Now().Add(limit))
		if n, err := nc.Read(make([]byte, 1)); n != 0 || err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("the agent says %d bytes, %v; want it to refuse the certificate", n, err)
		}
		nc.Close()
	}
	p.end(unix.SIGTERM)
}

// TestSignals: it ends in whatever it waits for.
func TestSignals(t *testing.T) {
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("a token of a good length"), 0o600); err != nil {
		t.Fatal(err)
	}
	silent := []string{"--token-file", token, "--connect", "tcp://" + nobody.Addr().String()}
	for name, args := range map[string][]string{
		"no mount": append(silent, t.TempDir()),
		"no port":  {"--connect", "virtio:org.heraldfs.none", testenv.Tmpfs(t)},
		"no word":  append(silent, testenv.Tmpfs(t)),
	} {
		for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
			t.Run(name+" "+sig.String(), func(t *testing.T) {
				p := start(t, args...)
				if name == "no word" {
					nc, err := nobody.Accept()
					if err != nil {
						t.Fatal(err)
					}
					defer nc.Close()
				}
				p.end(sig)
			})
		}
	}
}
