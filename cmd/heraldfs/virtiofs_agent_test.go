//go:build linux

package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/transport/transporttest"
)

// TestAgentListen: the agent's channel is open in the confined process, whatever its kind, to those who may use it.
func TestAgentListen(t *testing.T) {
	testenv.Need(t, testenv.Root)
	program := buildStatic(t)
	build(t, program+"-agent", "../heraldfs-agent")
	ca := transporttest.NewAuthority(t)
	cert, key := ca.Issue(t, "host")
	guestCert, guestKey := ca.Issue(t, "guest")
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("a token of a good length\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	certs := func(cert, key string) []string {
		return []string{"--tls-cert", cert, "--tls-key", key, "--tls-ca", ca.CAFile}
	}
	for _, mode := range []string{"namespace", "chroot", "landlock", "none"} {
		for name, c := range map[string]struct{ host, guest []string }{
			"certificates": {certs(cert, key), certs(guestCert, guestKey)},
			"token":        {[]string{"--token-file", token}, []string{"--token-file", token}},
		} {
			t.Run(mode+" "+name, func(t *testing.T) {
				url := "tcp://" + freeAddress(t)
				v := prepareVFS(t, program)
				v.start(append(c.host, "--sandbox", mode, "--agent-listen", url, v.dir)...)
				v.told("READY=1")
				agent := exec.Command(program+"-agent", append(c.guest, "--connect", url, testenv.Tmpfs(t))...)
				stderr, err := agent.StderrPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := agent.Start(); err != nil {
					t.Fatal(err)
				}
				stuck := time.AfterFunc(30*time.Second, func() { agent.Process.Kill() })
				defer stuck.Stop()
				said, lines := "", bufio.NewReader(stderr)
				for !strings.Contains(said, "msg=connected") {
					line, err := lines.ReadString('\n')
					if said += line; err != nil {
						t.Fatalf("not connected: %v, %v\n%s", err, agent.Wait(), said)
					}
				}
				agent.Process.Signal(unix.SIGTERM)
				v.cmd.Process.Signal(unix.SIGTERM)
				if code := v.end(); code != 0 {
					t.Errorf("exit %d\n%s", code, &v.log)
				}
				if _, err := io.ReadAll(lines); err != nil {
					t.Error(err)
				}
				if err := agent.Wait(); err != nil {
					t.Errorf("the agent: %v", err)
				}
			})
		}
	}
}

// freeAddress is one of the loopback's that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// TestAgentLog: what an agent can repeat does not fill the log.
func TestAgentLog(t *testing.T) {
	testenv.Need(t, testenv.Root)
	v := prepareVFS(t, buildStatic(t))
	path := filepath.Join(v.run, "a")
	v.start("--agent-listen", "unix://"+path, v.dir)
	v.told("READY=1")
	const refused = 200
	for range refused {
		nc, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		// An answer without a question.
		if err := protocol.NewEncoder(nc).Encode(&protocol.Results{ID: 1, Done: 1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, nc); err != nil && !errors.Is(err, unix.ECONNRESET) {
			t.Fatal(err)
		}
		nc.Close()
	}
	v.cmd.Process.Signal(unix.SIGTERM)
	if code := v.end(); code != 0 {
		t.Errorf("exit %d", code)
	}
	if n := strings.Count(v.log.String(), "an agent was refused"); n == 0 || n > 20 {
		t.Errorf("%d lines of %d refusals:\n%s", n, refused, &v.log)
	}
}
