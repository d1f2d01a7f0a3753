//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/heraldfs/heraldfs/internal/testenv"
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
}
