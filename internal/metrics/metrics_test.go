package metrics

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/heraldfs/heraldfs/internal/status"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"9100": "tcp 127.0.0.1:9100", ":9100": "tcp 127.0.0.1:9100", "0": "tcp 127.0.0.1:0",
		"0.0.0.0:9100": "tcp 0.0.0.0:9100", "[::1]:80": "tcp [::1]:80", "localhost:80": "tcp localhost:80",
		"/run/m": "unix /run/m", "unix:/run/m": "unix /run/m", "unix:///run/m": "unix /run/m",
	} {
		if network, addr, err := parse(in); err != nil || network+" "+addr != want {
			t.Errorf("%q: %s %s, %v; want %s", in, network, addr, err, want)
		}
	}
	for _, in := range []string{"", "localhost", "/", "h:p", "h:70000", "-1", "1:2:3", "relative/path", "h:"} {
		if network, addr, err := parse(in); !errors.Is(err, ErrAddress) {
			t.Errorf("%q: %s %s, %v; want ErrAddress", in, network, addr, err)
		}
	}
}

// full is a status in which every field has a value.
func full() *status.Status {
	s := &status.Status{}
	fill(reflect.ValueOf(s).Elem())
	return s
}

func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(1000, 0)))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key"), reflect.ValueOf(uint64(3)))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.String:
		v.SetString("/secret/path")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(2)
	case reflect.Uint64:
		v.SetUint(2)
	case reflect.Float64:
		v.SetFloat(0.5)
	}
}

// TestCollector: every metric that is described comes, in the form that Prometheus wants, and
// nothing that only the owner may know.
func TestCollector(t *testing.T) {
	st := full()
	st.Kind, st.Version, st.Roots[0].Name = "mount", "v1", "src"
	c := newCollector(func() *status.Status { return st })
	problems, err := testutil.CollectAndLint(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	rec := httptest.NewRecorder()
	handler(c.describe).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	text := rec.Body.String()
	for _, d := range descs() {
		if !strings.Contains(text, "\nheraldfs_"+d.name) {
			t.Errorf("%s is described and does not come", d.name)
		}
	}
	if strings.Contains(text, "secret") {
		t.Errorf("a path is told:\n%s", text)
	}
	want := `# HELP heraldfs_replay_delay_seconds From reading a change to the end of its repetition in the mount, in seconds.
# TYPE heraldfs_replay_delay_seconds histogram
heraldfs_replay_delay_seconds_bucket{le="0.5"} 2
heraldfs_replay_delay_seconds_bucket{le="+Inf"} 2
heraldfs_replay_delay_seconds_sum 0.5
heraldfs_replay_delay_seconds_count 2
# HELP heraldfs_stream_gaps_total Gaps that subscribers were told of, by reason.
# TYPE heraldfs_stream_gaps_total counter
heraldfs_stream_gaps_total{reason="key",root="src"} 3
`
	if err := testutil.CollectAndCompare(c, strings.NewReader(want), "heraldfs_replay_delay_seconds", "heraldfs_stream_gaps_total"); err != nil {
		t.Error(err)
	}
}

// serve runs a Server until the test ends.
func serve(t *testing.T, addr string, describe func() *status.Status) *Server {
	t.Helper()
	ln, err := Listen(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	s := New(ln, describe, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s
}

// client is an HTTP client of s alone.
func client(t *testing.T, s *Server) *http.Client {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, s.Addr().Network(), s.Addr().String())
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func get(t *testing.T, c *http.Client, path string) (int, string) {
	t.Helper()
	resp, err := c.Get("http://heraldfs" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestServer(t *testing.T) {
	var healthy atomic.Bool
	describe := func() *status.Status {
		s := &status.Status{Kind: "mount", Healthy: healthy.Load()}
		if !s.Healthy {
			s.Reason = "not mounted yet"
		}
		return s
	}
	sock := filepath.Join(t.TempDir(), "m")
	for _, addr := range []string{"0", sock} {
		healthy.Store(false)
		s := serve(t, addr, describe)
		c := client(t, s)
		if code, body := get(t, c, "/healthz"); code != 503 || body != "not mounted yet\n" {
			t.Errorf("%s: not healthy: %d %q", addr, code, body)
		}
		healthy.Store(true)
		if code, body := get(t, c, "/healthz"); code != 200 || body != "ok\n" {
			t.Errorf("%s: healthy: %d %q", addr, code, body)
		}
		if code, body := get(t, c, "/metrics"); code != 200 || !strings.Contains(body, "\nheraldfs_healthy 1\n") || !strings.Contains(body, "\nprocess_open_fds ") {
			t.Errorf("%s: metrics: %d %s", addr, code, body)
		}
		for _, path := range []string{"/", "/debug/pprof/", "/debug/vars", "/metrics/x", "/status"} {
			if code, _ := get(t, c, path); code != 404 {
				t.Errorf("%s%s: %d", addr, path, code)
			}
		}
		resp, err := c.Post("http://heraldfs/metrics", "text/plain", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s: POST: %d", addr, resp.StatusCode)
		}
		if s.Addr().Network() == "tcp" && !s.Addr().(*net.TCPAddr).IP.IsLoopback() {
			t.Errorf("a port alone listens on %s", s.Addr())
		}
	}
	if st, err := os.Stat(sock); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st, err)
	}
}

func TestTaken(t *testing.T) {
	describe := func() *status.Status { return &status.Status{} }
	s := serve(t, "0", describe)
	if _, err := Listen(t.Context(), s.Addr().String()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("taken port: %v", err)
	}
	sock := filepath.Join(t.TempDir(), "m")
	serve(t, sock, describe)
	if _, err := Listen(t.Context(), sock); !errors.Is(err, os.ErrExist) {
		t.Errorf("taken socket: %v", err)
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), file); !errors.Is(err, os.ErrExist) {
		t.Errorf("a file: %v", err)
	}
}

// TestConnections: who opens connections and says nothing keeps nobody else out for good.
func TestConnections(t *testing.T) {
	s := serve(t, "0", func() *status.Status { return &status.Status{Healthy: true} })
	var idle []net.Conn
	for range maxConns {
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		idle = append(idle, c)
	}
	// One that is answered shows that all before it were accepted.
	if _, err := fmt.Fprint(idle[maxConns-1], "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(idle[maxConns-1]).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		t.Fatalf("%q, %v", line, err)
	}
	if n := len(s.ln.(*limited).slots); n != maxConns {
		t.Errorf("%d slots are taken by %d connections", n, maxConns)
	}
	done := make(chan int, 1)
	go func() {
		resp, err := client(t, s).Get("http://heraldfs/healthz")
		if err != nil {
			done <- -1
			return
		}
		resp.Body.Close()
		done <- resp.StatusCode
	}()
	idle[0].Close()
	if code := <-done; code != 200 {
		t.Errorf("with a slot free again: %d", code)
	}
}
