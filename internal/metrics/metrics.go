// Package metrics answers Prometheus and health checks over HTTP: /metrics, /healthz and nothing
// else. Both are made of a status.Status when they are asked for, so that whoever counts pays for
// his counters only.
//
// Metrics have no path, no file name and no address of anybody in them: whoever can connect may read
// them. That is why a port alone means the loopback address.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/heraldfs/heraldfs/internal/status"
	"github.com/heraldfs/heraldfs/protocol/transport"
)

// ErrAddress says that an address is not understood.
var ErrAddress = errors.New("not an address: give HOST:PORT, a PORT of the loopback address, or the /PATH of a unix socket")

const (
	// maxConns bounds the connections; more of them wait in the kernel.
	maxConns = 32
	// maxScrapes bounds the requests for /metrics that are answered at a time.
	maxScrapes = 4
)

// Server is an open listener and what it answers with.
type Server struct {
	ln   net.Listener
	http *http.Server
}

// Listen opens addr, so that a wrong or taken one is told before anything else is done. A unix socket
// has mode 0600, and is removed when it is closed.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	network, address, err := parse(addr)
	if err != nil {
		return nil, err
	}
	if network == "unix" {
		return (&transport.URL{Network: "unix", Path: address}).Listen(ctx, nil)
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, network, address)
}

// New makes a Server of a listener, which becomes the Server's. describe may be called by several
// goroutines at a time.
func New(ln net.Listener, describe func() *status.Status, log *slog.Logger) *Server {
	return &Server{
		ln: limit(ln, maxConns),
		http: &http.Server{
			Handler:           handler(describe),
			ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
			WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute,
			MaxHeaderBytes: 8 << 10,
			ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
	}
}

// parse understands an address.
func parse(addr string) (network, address string, err error) {
	bad := func(why string) error { return fmt.Errorf("%q: %s: %w", addr, why, ErrAddress) }
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		addr = "/" + strings.TrimLeft(path, "/")
	}
	if strings.HasPrefix(addr, "/") && addr != "/" {
		return "unix", addr, nil
	}
	if _, err := strconv.Atoi(addr); err == nil {
		addr = ":" + addr
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", "", bad("no port in it")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", "", bad("the port must be a number from 0 to 65535")
	} else if host == "" {
		return "tcp", net.JoinHostPort("127.0.0.1", strconv.FormatUint(n, 10)), nil
	}
	return "tcp", addr, nil
}

// Addr is what the server listens on.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Run answers until ctx ends or Close is called, and returns nil. Requests that are being answered at
// the end have a moment.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.ln) }()
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
		// ctx is over; the moment is not.
		moment, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if s.http.Shutdown(moment) != nil {
			_ = s.http.Close()
		}
		err = <-served
	}
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("metrics: %w", err)
}

// Close ends Run and closes the listener. Idempotent.
func (s *Server) Close() error {
	err := errors.Join(s.http.Close(), s.ln.Close())
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func handler(describe func() *status.Status) http.Handler {
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(newCollector(describe), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		s := describe()
		if !s.Healthy {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, s.Reason)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}
