package transport

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// TestOtherUser connects as another user through a socket that is open to all.
func TestOtherUser(t *testing.T) {
	if os.Getenv("TRANSPORT_TEST_DIAL") != "" {
		c, err := net.Dial("unix", os.Getenv("TRANSPORT_TEST_DIAL"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, c)
		return
	}
	if os.Geteuid() != 0 {
		if allowUser(12345, 1) == nil || allowUser(0, 1) != nil || allowUser(1, 1) != nil {
			t.Error("wrong users")
		}
		return
	}
	dir, err := os.MkdirTemp("/tmp", "herald")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	u := &URL{Network: "unix", Path: filepath.Join(dir, "s")}
	ln, err := u.Listen(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := os.Chmod(u.Path, 0o666); err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "dial")
	b, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestOtherUser$")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TRANSPORT_TEST_DIAL="+u.Path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12345}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Check(c); !errors.Is(err, ErrPeer) {
		t.Errorf("got %v, want ErrPeer", err)
	}
	c.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
