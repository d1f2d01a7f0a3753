package e2e

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// told is what these tests look at of `heraldfs status --json`.
type told struct {
	Kind, Source, Mountpoint, Watcher, Reason string
	Healthy                                   bool
	Replay                                    *struct {
		Events             map[string]uint64
		Replayed, Dropped  uint64
		Backlog            int `json:"backlog_events"`
		Delay              struct{ Count uint64 }
		KnownInodes        int `json:"known_inodes"`
		Fallbacks, Retries uint64
	}
	Requests  map[string]uint64 `json:"fuse_requests"`
	Transport string            `json:"fuse_transport"`
	Roots     []struct {
		Name, Dir, Watcher string
		Events             map[string]uint64
		Journal            struct {
			Events uint64
			Last   uint64 `json:"last_sequence"`
		}
		Subscriptions uint64
		Connected     int `json:"subscribers_connected"`
	}
	Listening []string
	Upstream  *struct {
		URL       string
		Connected bool
		Connects  uint64
		Events    uint64
		LastError string `json:"last_error"`
	}
}

func statusOf(t testing.TB, arg string) *told {
	t.Helper()
	var s told
	text := must(t, "status", "--json", arg)
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return &s
}

func TestStatusMount(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			dirs := place(t, "src", "mnt", "bound")
			src, mnt := dirs[0], dirs[1]
			d := serve(t, src, mnt, "--watcher="+backend)
			if _, err := os.ReadDir(mnt); err != nil {
				t.Fatal(err)
			}
			for _, n := range []string{"a", "b", "c"} {
				write(t, filepath.Join(src, n), n)
			}
			d.sync()
			s := statusOf(t, mnt)
			if s.Kind != "mount" || !s.Healthy || s.Source != src || s.Mountpoint != mnt || s.Watcher != backend {
				t.Errorf("%+v", s)
			}
			// On a shared file system there may be more, of others.
			if r := s.Replay; r == nil || r.Events["create"] < 3 || r.Replayed < 6 || r.Delay.Count < 6 || r.Backlog != 0 || r.KnownInodes < 1 {
				t.Errorf("replay %+v", s.Replay)
			}
			// A file that is closed in the batch in which it was made is made by opening it.
			if s.Requests["MKNOD"]+s.Requests["CREATE"] != 3 || s.Requests["INIT"] != 1 {
				t.Errorf("requests %v", s.Requests)
			}
			text := must(t, "status", mnt)
			for _, want := range []string{"state", "healthy", src, mnt, backend, "replayed", "delay", "INIT 1"} {
				if !strings.Contains(text, want) {
					t.Errorf("%q is not in:\n%s", want, text)
				}
			}
			// It is an attribute that no listing has.
			buf := make([]byte, 1024)
			if n, err := unix.Listxattr(mnt, buf); err != nil || strings.Contains(string(buf[:n]), "heraldfs") {
				t.Errorf("listed: %q, %v", buf[:max(n, 0)], err)
			}
			// From another mount of the same tree, as a guest has it.
			check(t, unix.Mount(mnt, dirs[2], "", unix.MS_BIND, ""))
			defer unix.Unmount(dirs[2], unix.MNT_DETACH)
			if s := statusOf(t, dirs[2]); s.Mountpoint != mnt {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestStatusWithoutEvents(t *testing.T) {
	dirs := place(t, "src", "mnt")
	serve(t, dirs[0], dirs[1], "--notify=off")
	if s := statusOf(t, dirs[1]); !s.Healthy || s.Watcher != "off" || s.Replay != nil {
		t.Errorf("%+v", s)
	}
}

func TestStatusErrors(t *testing.T) {
	dirs := place(t, "src", "mnt", "dead", "plain", "sub")
	src, mnt, dead, plain := dirs[0], dirs[1], dirs[2], dirs[3]
	check(t, os.Mkdir(src+"/sub", 0o755))
	serve(t, src, mnt)
	serve(t, src, dead).kill()
	listen := func(name string) (string, net.Listener) {
		path := filepath.Join(plain, name)
		ln, err := net.Listen("unix", path)
		check(t, err)
		check(t, os.Chmod(path, 0o666))
		t.Cleanup(func() { ln.Close() })
		return path, ln
	}
	gone, ln := listen("gone")
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	other, ln := listen("other")
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			c.Close()
		}
	}()
	sock := filepath.Join(plain, "s")
	start(t, exec.Command(bin, "serve", "--listen", "unix://"+sock, src), "msg=listening url=unix://"+sock)

	for _, c := range []struct {
		name string
		cmd  *exec.Cmd
		want []string
	}{
		{"nothing", exec.Command(bin, "status"), []string{"a MOUNTPOINT or a SOCKET"}},
		{"missing path", exec.Command(bin, "status", src+"/none"), []string{src + "/none", "no such file"}},
		{"plain directory", exec.Command(bin, "status", plain), []string{plain, "nothing is mounted"}},
		{"directory in a mount", exec.Command(bin, "status", mnt+"/sub"), []string{mnt + "/sub", "nothing is mounted"}},
		{"another file system", exec.Command(bin, "status", "/proc"), []string{"/proc", "proc file system", "not heraldfs"}},
		{"dead daemon", exec.Command(bin, "status", dead), []string{dead, "daemon is dead", "umount"}},
		{"mount of another user", as(exec.Command(bin, "status", mnt)), []string{mnt, "only root"}},
		{"dead server", exec.Command(bin, "status", gone), []string{gone, "server is dead"}},
		{"another server", exec.Command(bin, "status", other), []string{other, "no heraldfs server"}},
		{"server of another user", as(exec.Command(bin, "status", sock)), []string{sock, "only root"}},
		{"remote server", exec.Command(bin, "status", "tcp://127.0.0.1:1"), []string{"unix socket only", "--metrics"}},
		{"no URL", exec.Command(bin, "status", "unix:relative"), []string{"heraldfs URL"}},
	} {
		t.Run(c.name, func(t *testing.T) { wrong(t, c.cmd, c.want...) })
	}
	check(t, unix.Unmount(dead, unix.MNT_DETACH))
}

func TestStatusServe(t *testing.T) {
	dirs := place(t, "src", "logs", "run")
	src, logs, sock := dirs[0], dirs[1], dirs[2]+"/s"
	start(t, exec.Command(bin, "serve", "--listen", "unix://"+sock, "--max-subscribers=1", "--root", "logs="+logs, src), "msg=listening url=unix://"+sock)
	w := start(t, exec.Command(bin, "watch", "--format=json", "unix://"+sock), "}")
	write(t, src+"/f", "x")
	w.wait("f closed", func(line string) bool { return strings.Contains(line, `"close_write"`) })
	// The one place for subscribers is taken, which hinders nobody from asking.
	s := statusOf(t, sock)
	if s.Kind != "serve" || !s.Healthy || len(s.Roots) != 2 || len(s.Listening) != 1 {
		t.Fatalf("%+v", s)
	}
	if r := s.Roots[0]; r.Name != "" || r.Dir != src || r.Events["create"] != 1 || r.Connected != 1 || r.Subscriptions != 1 || r.Journal.Events < 2 || r.Journal.Last != r.Journal.Events {
		t.Errorf("%+v", r)
	}
	if r := s.Roots[1]; r.Name != "logs" || r.Dir != logs || r.Journal.Events != 0 || r.Connected != 0 {
		t.Errorf("%+v", r)
	}
	text := must(t, "status", "unix://"+sock)
	for _, want := range []string{"(default): " + src, "logs: " + logs, "create 1", "1 connected", "heraldfs, 0 events behind"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
}

// fetch asks a process that was started with --metrics.
func fetch(t testing.TB, sock, path string) (int, string) {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", sock)
	}}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: patience}).Get("http://heraldfs" + path)
	check(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	check(t, err)
	return resp.StatusCode, string(body)
}

// has fails the test unless each of lines is a line of text.
func has(t testing.TB, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains("\n"+text, "\n"+line+"\n") {
			t.Errorf("no line %q in:\n%s", line, text)
		}
	}
}

func TestMetrics(t *testing.T) {
	dirs := place(t, "src", "mnt", "run")
	src, mnt, run := dirs[0], dirs[1], dirs[2]
	sock := run + "/mount"
	d := serve(t, src, mnt, "-o", "metrics="+sock)
	_, err := os.ReadDir(mnt)
	check(t, err)
	write(t, src+"/f", "x")
	d.sync()
	if code, body := fetch(t, sock, "/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("healthz: %d %s", code, body)
	}
	_, body := fetch(t, sock, "/metrics")
	has(t, body, `heraldfs_fuse_requests_total{opcode="INIT"} 1`, "heraldfs_replay_backlog_events 0", "heraldfs_healthy 1", "heraldfs_replay_overflows_total 0")
	if strings.Contains(body, src) || strings.Contains(body, `"f"`) {
		t.Errorf("a path is told:\n%s", body)
	}

	for name, args := range map[string][]string{
		"serve":    {"serve", "--listen", "unix://" + run + "/s", "--metrics", run + "/serve", "--root", "r=" + src},
		"virtiofs": {"virtiofs", "--sandbox=none", "--socket", run + "/v", "--metrics", run + "/virtiofs", src},
	} {
		c := start(t, exec.Command(bin, args...), map[string]string{"serve": run + "/s", "virtiofs": "sandbox=none"}[name])
		if code, body := fetch(t, run+"/"+name, "/healthz"); code != 200 {
			t.Errorf("%s: healthz: %d %s", name, code, body)
		}
		_, body := fetch(t, run+"/"+name, "/metrics")
		switch name {
		case "serve":
			has(t, body, `heraldfs_stream_journal_events{root="r"} 0`, `heraldfs_stream_subscribers{root="r"} 0`)
			write(t, src+"/g", "x")
			eventually(t, "the event is counted", func() bool {
				_, body := fetch(t, run+"/serve", "/metrics")
				return strings.Contains(body, `heraldfs_stream_events_total{op="create",root="r"} 1`)
			})
		case "virtiofs":
			has(t, body, "heraldfs_machine_connected 0", "heraldfs_machine_connections_total 0")
		}
		c.cmd.Process.Signal(unix.SIGTERM)
		<-c.ended
		if _, err := os.Lstat(run + "/" + name); err == nil {
			t.Errorf("%s: the socket is still there", name)
		}
	}

	// What cannot be had is told before anything is mounted.
	write(t, run+"/file", "x")
	for addr, want := range map[string]string{"nonsense": "give HOST:PORT", sock: "listens there", run + "/file": "no socket", "192.0.2.1:80": "192.0.2.1:80", run + "/none/m": "no such file"} {
		for _, extra := range [][]string{nil, {"--daemon"}, {"--dry-run"}} {
			args := append([]string{"mount", "--metrics", addr}, extra...)
			other := place(t, "other")[0]
			wrong(t, exec.Command(bin, append(args, src, other)...), "--metrics", want)
			if isMounted(t, other) {
				t.Errorf("%s: mounted", addr)
			}
		}
	}
	d.stop(unix.SIGTERM)
	if _, err := os.Lstat(sock); err == nil {
		t.Error("the mount's socket is still there")
	}
}

// TestHealthBeforeReady: while the tree is still being walked the server says so.
func TestHealthBeforeReady(t *testing.T) {
	dirs := place(t, "src", "run")
	fifo := dirs[1] + "/log"
	check(t, unix.Mkfifo(fifo, 0o600))
	// The log's first line goes nowhere until somebody reads: the server stands still before it watches.
	r, err := os.OpenFile(fifo, os.O_RDWR, 0)
	check(t, err)
	defer r.Close()
	size, err := unix.FcntlInt(r.Fd(), unix.F_GETPIPE_SZ, 0)
	check(t, err)
	_, err = r.Write(make([]byte, size-64))
	check(t, err)
	sock := dirs[1] + "/m"
	cmd := exec.Command(bin, "serve", "--log-file", fifo, "--listen", "unix://"+dirs[1]+"/s", "--metrics", sock, dirs[0])
	check(t, cmd.Start())
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	eventually(t, "the socket is there", func() bool {
		c, err := net.Dial("unix", sock)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	if code, body := fetch(t, sock, "/healthz"); code != 503 || !strings.Contains(body, "being set up") {
		t.Errorf("healthz: %d %s", code, body)
	}
	go io.Copy(io.Discard, r)
	eventually(t, "it is healthy", func() bool { code, _ := fetch(t, sock, "/healthz"); return code == 200 })
	check(t, cmd.Process.Signal(unix.SIGTERM))
	check(t, cmd.Wait())
}

// TestStatusShare: a mount that is fed by a server says when it has lost it, and that it has it again.
func TestStatusShare(t *testing.T) {
	s := newShare(t, "bind")
	metrics := filepath.Dir(s.socket) + "/m"
	d := s.mount("--metrics", metrics)
	d.troubled = true // it says that the server is gone
	_, err := os.ReadDir(s.mnt)
	check(t, err)
	write(t, s.host+"/f", "x")
	d.sync()
	if got := statusOf(t, s.mnt); !got.Healthy || got.Upstream == nil || !got.Upstream.Connected || got.Upstream.Connects != 1 || got.Upstream.Events == 0 || got.Upstream.URL != s.url {
		t.Errorf("%+v, %+v", got, got.Upstream)
	}
	s.server.kill()
	eventually(t, "the loss is told", func() bool { code, _ := fetch(t, metrics, "/healthz"); return code == 503 })
	if _, body := fetch(t, metrics, "/healthz"); !strings.Contains(body, "no connection to "+s.url) {
		t.Errorf("healthz: %s", body)
	}
	out, code := heraldfs(t, "status", s.mnt)
	if code != 3 || !strings.Contains(out, "NOT HEALTHY: no connection to "+s.url) {
		t.Errorf("status: exit %d\n%s", code, out)
	}
	s.serve()
	eventually(t, "it is healthy again", func() bool { code, _ := fetch(t, metrics, "/healthz"); return code == 200 })
	_, body := fetch(t, metrics, "/metrics")
	has(t, body, "heraldfs_upstream_connected 1", "heraldfs_upstream_connects_total 2")
}
