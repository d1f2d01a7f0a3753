package main

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/vmtest"
)

// TestVirtiofs is the command with a guest: ready when systemd is told so, both ways, and a clean end.
func TestVirtiofs(t *testing.T) {
	vmtest.Need(t)
	run, dir := t.TempDir(), t.TempDir()
	program := filepath.Join(run, "heraldfs")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(run, "notify")})
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	socket := filepath.Join(run, "s")
	cmd := exec.Command(program, "virtiofs", "--socket", socket, "--cache", "never", dir)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(run, "notify"))
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill()
	buf := make([]byte, 256)
	ready.SetReadDeadline(time.Now().Add(30 * time.Second))
	if n, err := ready.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
		t.Fatalf("readiness: %q, %v", buf[:n], err)
	}
	vm := vmtest.Start(t, vmtest.Options{Shares: []vmtest.Share{{Socket: socket, Tag: "src"}}})
	vm.Mount("src", "/mnt")
	if got := vm.Run("cat /mnt/f; echo -n guest > /mnt/g; mkdir /mnt/sub"); got != "host" {
		t.Errorf("in the guest: %q", got)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "g")); err != nil || string(got) != "guest" {
		t.Errorf("on the host: %q, %v", got, err)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("end: %v\n%s", err, log.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatal("SIGTERM does not end it")
	}
	if _, err := os.Lstat(socket); err == nil || strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("socket: %v; log:\n%s", err, log.String())
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
		{"--sandbox", []string{"--socket", socket, "--sandbox", "namespace", dir}},
		{"--queues", []string{"--socket", socket, "--queues", "0", dir}},
		{"no such file", []string{"--socket", socket, filepath.Join(dir, "none")}},
		{"is not a socket", []string{"--socket", dir, dir}},
	} {
		var out, errs bytes.Buffer
		code := run(append([]string{"heraldfs", "virtiofs"}, c.args...), &out, &errs)
		if code != 1 || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%q: exit %d, %q; want %q", c.args, code, errs.String(), c.want)
		}
	}
}
