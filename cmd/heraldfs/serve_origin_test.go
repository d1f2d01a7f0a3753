//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/protocol"
)

// TestServeOrigin: a process that was named is told of in its events, and its children are, and
// nobody else.
func TestServeOrigin(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Fanotify)
	src, sock := t.TempDir(), filepath.Join(t.TempDir(), "s")
	// The shell does one thing itself and has a child do another, at our word. The child lives on: of
	// one that has ended nobody can say whose it was.
	sh := exec.Command("sh", "-c", `read x; : >"$0/own"; (: >"$0/childs"; read x); read x`, src)
	in, err := sh.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sh.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		_ = sh.Wait() // it ends when its input does
	}()
	launch(t, heraldfs("serve", "--watcher=fanotify", "--listen", "unix://"+sock, "--origin", fmt.Sprintf("shell=%d", sh.Process.Pid), src)).wait(t, "msg=listening")
	w := launch(t, heraldfs("watch", "--format=json", "unix://"+sock))
	w.wait(t, `"type":"ready"`)
	if _, err := fmt.Fprintln(in, "go"); err != nil {
		t.Fatal(err)
	}
	w.wait(t, `"type":"create","path":"own",[^\n]*"origin":"shell"}`)
	w.wait(t, `"type":"create","path":"childs",[^\n]*"origin":"shell"}`)
	if err := os.WriteFile(filepath.Join(src, "ours"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	w.wait(t, `"type":"create","path":"ours","is_dir":false,"pid":\d+}`)
}

// gone is the id of a process that has ended.
func gone(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

// TestServeOriginAtStart: what can never name anybody is refused at once.
func TestServeOriginAtStart(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Fanotify)
	src, sock := t.TempDir(), "unix://"+filepath.Join(t.TempDir(), "s")
	for _, tc := range []struct{ watcher, origin, want string }{
		{"fanotify", fmt.Sprintf("vm=%d", gone(t)), "no process has that id"},
		{"inotify", fmt.Sprintf("vm=%d", os.Getpid()), "needs fanotify"},
		{"portable", fmt.Sprintf("vm=%d", os.Getpid()), "needs fanotify"},
	} {
		out, err := heraldfs("serve", "--watcher="+tc.watcher, "--listen", sock, "--origin", tc.origin, src).CombinedOutput()
		if err == nil || !strings.Contains(string(out), tc.want) {
			t.Errorf("--watcher=%s --origin %s: %v\n%s", tc.watcher, tc.origin, err, out)
		}
	}
	launch(t, heraldfs("serve", "--watcher=fanotify", "--listen", sock, "--origin", "vm=no-such-comm", src)).
		wait(t, `level=WARN msg="no process has the name of an --origin yet" origin=vm`)
}

// TestMountOrigin: a mount that goes by a name which the server does not have is refused, and both logs say so; where the
// named process has ended, both warn.
func TestMountOrigin(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Fanotify, testenv.FUSE)
	src, mnt, sock := t.TempDir(), t.TempDir(), "unix://"+filepath.Join(t.TempDir(), "s")
	named := exec.Command("cat")
	in, err := named.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := named.Start(); err != nil {
		t.Fatal(err)
	}
	serve := launch(t, heraldfs("serve", "--watcher=fanotify", "--listen", sock, "--origin", fmt.Sprintf("vm1=%d", named.Process.Pid), src))
	serve.wait(t, "msg=listening")
	out, err := heraldfs("mount", "--events", sock, "--origin", "vm2", src, mnt).CombinedOutput()
	if err == nil || !strings.Contains(string(out), `no such origin`) || !strings.Contains(string(out), "the server has vm1") {
		t.Errorf("a mount with a name that the server does not have: %v\n%s", err, out)
	}
	serve.wait(t, `vm2[^\n]*no such origin`)
	in.Close()
	if err := named.Wait(); err != nil {
		t.Fatal(err)
	}
	mount := launch(t, heraldfs("mount", "--events", sock, "--origin", "vm1", src, mnt))
	mount.wait(t, `level=WARN msg="the server has something to say"[^\n]*which has ended`)
	serve.wait(t, `level=WARN msg="a subscriber goes by a name that fits nobody"[^\n]*origin=vm1`)
}

func TestParseOrigins(t *testing.T) {
	for _, bad := range []string{"", "a", "=1", "a=", "a=0", "a=-3", "a=a-name-of-17-chars"} {
		if _, err := parseOrigins([]string{bad}); err == nil {
			t.Errorf("--origin %q is taken", bad)
		}
	}
	o, err := parseOrigins([]string{"none=1", "mine=" + fmt.Sprint(os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	if got := o.find(int32(os.Getpid())); got != "mine" {
		t.Errorf("we are %q", got)
	}
	if got := o.find(1 << 30); got != "" {
		t.Errorf("nobody is %q", got)
	}
	for name, want := range map[string]error{"mine": nil, "others": protocol.ErrNoOrigin} {
		if note, err := o.judge(name); !errors.Is(err, want) || note != "" {
			t.Errorf("a subscriber called %s: %q, %v", name, note, err)
		}
	}
	if _, err := (originRules{}).judge("mine"); !errors.Is(err, protocol.ErrNoOrigin) {
		t.Errorf("without any --origin: %v", err)
	}
	// One of two processes of a name is enough.
	o, err = parseOrigins([]string{"vm=" + fmt.Sprint(gone(t)), "vm=" + fmt.Sprint(os.Getpid()), "none=no-such-comm"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"vm": false, "none": true} {
		if note, err := o.judge(name); err != nil || (note != "") != want {
			t.Errorf("a subscriber called %s: %q, %v", name, note, err)
		}
	}
}
