//go:build linux

package main

import (
	"bufio"
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
