package transport

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"syscall"
	"time"
)

// The pauses before Accept tries again: they double.
const (
	minAcceptPause = 5 * time.Millisecond
	maxAcceptPause = time.Second
)

// passing are the errors of accept(2) that say nothing about the listener: no descriptors or memory are left, or the
// peer was gone at once.
var passing = [...]error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.ECONNABORTED}

// Accept calls accept, a listener's method, and again after a pause if its error passes: who uses up our descriptors
// must not end us. It returns other errors, and the last one when ctx has ended; that does not close the listener.
func Accept[C net.Conn](ctx context.Context, accept func() (C, error), log *slog.Logger) (C, error) {
	for pause := minAcceptPause; ; pause = min(2*pause, maxAcceptPause) {
		c, err := accept()
		if err == nil || !passes(err) || ctx.Err() != nil {
			return c, err
		}
		if pause == minAcceptPause {
			log.Warn("no connection can be accepted for now", "err", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return c, err
		}
	}
}

func passes(err error) bool {
	for _, e := range passing {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
