//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/internal/vmtest"
)

// TestVirtiofsUnprivileged: a user's own back-end is confined by Landlock, and in a user namespace if told to.
func TestVirtiofsUnprivileged(t *testing.T) {
	testenv.Need(t, testenv.Root)
	const nobody = 65534
	top, err := os.MkdirTemp("", "user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	program := filepath.Join(top, "heraldfs")
	if err := exec.Command("cp", buildStatic(t), program).Run(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(top, "share")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{top, dir} {
		if err := os.Chown(p, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	for mode, want := range map[string]string{"": "sandbox=landlock", "namespace": "sandbox=namespace", "none": "sandbox=none"} {
		t.Run(mode, func(t *testing.T) {
			socket := filepath.Join(top, "s")
			cmd := exec.Command(program, "virtiofs", "--once", "--sandbox", mode, "--socket", socket, dir)
			if mode == "" {
				cmd.Args = append(cmd.Args[:3], cmd.Args[5:]...)
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			stuck := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
			defer stuck.Stop()
			log, lines := "", bufio.NewReader(stderr)
			for !strings.Contains(log, "waiting for a virtual machine monitor") {
				line, err := lines.ReadString('\n')
				if log += line; err != nil {
					t.Fatalf("not ready: %v, %v\n%s", err, cmd.Wait(), log)
				}
			}
			if st, err := os.Lstat(socket); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("socket: %v, %v", st, err)
			}
			cmd.Process.Signal(unix.SIGTERM)
			rest, err := io.ReadAll(lines)
			if err := errors.Join(err, cmd.Wait()); err != nil || !strings.Contains(log, want) {
				t.Errorf("%v; want %s in\n%s%s", err, want, log, rest)
			}
		})
	}
}

// TestVirtiofsLaterMount: what the host mounts below DIR later is there, if DIR's mount is shared, and goes with it.
func TestVirtiofsLaterMount(t *testing.T) {
	testenv.Need(t, testenv.Root)
	base := t.TempDir()
	mount := func(typ, dir string, flags uintptr) {
		t.Helper()
		if err := unix.Mount("none", dir, typ, flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	mount("tmpfs", base, 0)
	t.Cleanup(func() {
		if err := unix.Unmount(base, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	mount("", base, unix.MS_SHARED)
	dir := filepath.Join(base, "share")
	sub := filepath.Join(dir, "sub")
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	v := prepareVFS(t, buildStatic(t))
	v.start(dir)
	v.told("READY=1")
	mount("tmpfs", sub, 0)
	if err := os.WriteFile(filepath.Join(sub, "f"), []byte("later"), 0o644); err != nil {
		t.Fatal(err)
	}
	inside := fmt.Sprintf("/proc/%d/root%s/f", v.server(), sub)
	if b, err := os.ReadFile(inside); err != nil || string(b) != "later" {
		t.Errorf("inside: %q, %v", b, err)
	}
	if err := unix.Unmount(sub, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(inside); !os.IsNotExist(err) {
		t.Errorf("inside after the unmount: %v", err)
	}
	v.cmd.Process.Signal(unix.SIGTERM)
	if code := v.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, &v.log)
	}
}

// TestTwoMachines: two machines share a directory through a process each. One goes on when the other's process is
// killed, or its machine stops taking part.
func TestTwoMachines(t *testing.T) {
	vmtest.Need(t)
	program := buildStatic(t)
	a := startVFS(t, program, "--cache", "never")
	b := prepareVFS(t, program)
	b.start("--cache", "never", a.dir)
	b.told("READY=1")
	vma := vmtest.Start(t, vmtest.Options{Shares: []vmtest.Share{{Socket: a.socket, Tag: "src"}}})
	vmb := vmtest.Start(t, vmtest.Options{Shares: []vmtest.Share{{Socket: b.socket, Tag: "src"}}})
	vma.Mount("src", "/mnt")
	vmb.Mount("src", "/mnt")
	vma.Run("echo -n one > /mnt/f; (exec 3>/mnt/held; sleep 1000) >/dev/null 2>&1 </dev/null &")
	if got := vmb.Run("cat /mnt/f; echo -n two > /mnt/f"); got != "one" {
		t.Errorf("in the second: %q", got)
	}
	if got := vma.Run("cat /mnt/f"); got != "two" {
		t.Errorf("in the first: %q", got)
	}
	vma.QMP("stop")
	vmb.Run("echo -n three > /mnt/f")
	vma.QMP("cont")
	if got := vma.Run("cat /mnt/f"); got != "three" {
		t.Errorf("in the first: %q", got)
	}
	if err := unix.Kill(a.server(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := a.end(); code != 1 {
		t.Errorf("killed: exit %d", code)
	}
	if got := vmb.Run("cat /mnt/f; echo -n four > /mnt/f; mv /mnt/f /mnt/g; cat /mnt/g; rm /mnt/g /mnt/held"); got != "threefour" {
		t.Errorf("in the second: %q", got)
	}
	if err := b.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := b.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, &b.log)
	}
}
