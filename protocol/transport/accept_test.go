package transport

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestAccept: what passes is waited for, with one line in the log; anything else is the end.
func TestAccept(t *testing.T) {
	broken := errors.New("broken")
	var log strings.Builder
	logger := slog.New(slog.NewTextHandler(&log, nil))
	script := []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.ECONNABORTED, nil, broken}
	accept := func() (net.Conn, error) {
		err := script[0]
		script = script[1:]
		if err == nil {
			c, _ := net.Pipe()
			return c, nil
		}
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
	}
	c, err := Accept(t.Context(), accept, logger)
	if err != nil || c == nil {
		t.Fatalf("got %v, %v", c, err)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("%d lines in the log:\n%s", n, &log)
	}
	if _, err := Accept(t.Context(), accept, logger); !errors.Is(err, broken) {
		t.Errorf("got %v, want what broke it", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	_, err = Accept(ctx, func() (net.Conn, error) {
		if calls++; calls == 2 {
			cancel()
		}
		return nil, syscall.EMFILE
	}, logger)
	if !errors.Is(err, syscall.EMFILE) || calls != 2 {
		t.Errorf("with a context that ended: %v after %d calls", err, calls)
	}
}
