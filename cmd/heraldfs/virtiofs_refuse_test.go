//go:build linux

package main

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// TestVirtiofsNoPivot: where the root cannot be changed, here because it is no mount, the default confines
// by Landlock and says why; who has chosen namespaces is told what to do.
func TestVirtiofsNoPivot(t *testing.T) {
	testenv.Need(t, testenv.Root)
	program, root := buildStatic(t), t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "share"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(program, filepath.Join(root, "heraldfs")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("proc", filepath.Join(root, "proc"), "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(filepath.Join(root, "proc"), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	start := func(args ...string) (*exec.Cmd, *bytes.Buffer) {
		cmd := exec.Command("/heraldfs", append([]string{"virtiofs", "--once", "--socket", "/s"}, args...)...)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		cmd.Env = []string{"TZ=UTC"}
		log := &bytes.Buffer{}
		cmd.Stderr = log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stuck := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
		t.Cleanup(func() { stuck.Stop() })
		return cmd, log
	}
	cmd, log := start("--sandbox=namespace", "/share")
	if err := cmd.Wait(); err == nil || !strings.Contains(log.String(), "mount namespace") || !strings.Contains(log.String(), "give --sandbox=chroot or --sandbox=landlock") {
		t.Errorf("chosen: %v\n%s", err, log)
	}
	if n := strings.Count(log.String(), "mount namespace"); n != 1 {
		t.Errorf("said %d times", n)
	}
	cmd, log = start("/share")
	// --once: it ends when this has gone.
	var err error
	for range 3000 {
		var c net.Conn
		if c, err = net.Dial("unix", filepath.Join(root, "s")); err == nil {
			c.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(log.String(), `msg="no namespaces" why=`) || !strings.Contains(log.String(), "sandbox=landlock") {
		t.Errorf("the default: %v\n%s", err, log)
	}
	if err != nil {
		t.Error(err)
	}
}

// TestVirtiofsTakenOver: sockets that another process has put in the place of ours stay when we end.
func TestVirtiofsTakenOver(t *testing.T) {
	testenv.Need(t, testenv.Root)
	program := buildStatic(t)
	for _, mode := range []string{"namespace", "none"} {
		t.Run(mode, func(t *testing.T) {
			first, second := prepareVFS(t, program), prepareVFS(t, program)
			second.socket = first.socket
			agent := filepath.Join(first.run, "a")
			for _, v := range []*vfs{first, second} {
				for _, path := range []string{first.socket, agent} {
					if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
						t.Fatal(err)
					}
				}
				v.start("--sandbox", mode, "--agent-listen", "unix://"+agent, v.dir)
				v.told("READY=1")
			}
			for i, v := range []*vfs{first, second} {
				v.cmd.Process.Signal(unix.SIGTERM)
				if code := v.end(); code != 0 {
					t.Errorf("exit %d\n%s", code, &v.log)
				}
				for _, path := range []string{first.socket, agent} {
					if _, err := os.Lstat(path); (err == nil) != (i == 0) {
						t.Errorf("%s after the end of %d: %v", path, i, err)
					}
				}
			}
		})
	}
}
