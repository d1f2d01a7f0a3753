package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"github.com/heraldfs/heraldfs/internal/metrics"
	"github.com/heraldfs/heraldfs/internal/status"
)

// metricsFlag is the one flag of the commands that can be scraped.
type metricsFlag struct{ addr string }

func (m *metricsFlag) register(fs *pflag.FlagSet) {
	fs.StringVar(&m.addr, "metrics", "", "answer Prometheus at /metrics and health checks at /healthz on this `ADDR`:\nHOST:PORT, a PORT of the loopback address, or the /PATH of a unix socket")
}

// listen opens the address, nil if there is none.
func (m *metricsFlag) listen(ctx context.Context) (net.Listener, error) {
	if m.addr == "" {
		return nil, nil
	}
	ln, err := metrics.Listen(ctx, m.addr)
	if err != nil {
		return nil, fmt.Errorf("--metrics: %w", err)
	}
	return ln, nil
}

// start listens, if that was asked for, and answers; stop ends it and waits.
func (m *metricsFlag) start(ctx context.Context, describe func() *status.Status, log *slog.Logger) (stop func(), err error) {
	ln, err := m.listen(ctx)
	if err != nil {
		return nil, err
	}
	return answerMetrics(ctx, ln, describe, log), nil
}

// answerMetrics answers on ln, which may be nil, until stop is called, also after ctx has ended.
func answerMetrics(ctx context.Context, ln net.Listener, describe func() *status.Status, log *slog.Logger) (stop func()) {
	if ln == nil {
		return func() {}
	}
	s := metrics.New(ln, describe, log)
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			log.Error("metrics are not answered any more", "err", err)
		}
	})
	log.Info("metrics", "address", ln.Addr().String())
	return func() {
		cancel()
		wg.Wait()
	}
}

// newStatus is what every process tells.
func newStatus(kind string, started time.Time) *status.Status {
	return &status.Status{Kind: kind, Version: readVersion().Version, Pid: os.Getpid(), Started: started.UTC()}
}
