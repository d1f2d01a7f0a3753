package main

import (
	"context"
	"fmt"
	"log/slog"
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

// start listens, if that was asked for; stop ends it and waits.
func (m *metricsFlag) start(ctx context.Context, describe func() *status.Status, log *slog.Logger) (stop func(), err error) {
	if m.addr == "" {
		return func() {}, nil
	}
	s, err := metrics.Listen(ctx, m.addr, describe, log)
	if err != nil {
		return nil, fmt.Errorf("--metrics: %w", err)
	}
	log.Info("metrics", "address", s.Addr().String())
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			log.Error("metrics are not answered any more", "err", err)
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}, nil
}

// newStatus is what every process tells.
func newStatus(kind string, started time.Time) *status.Status {
	return &status.Status{Kind: kind, Version: readVersion().Version, Pid: os.Getpid(), Started: started.UTC()}
}
