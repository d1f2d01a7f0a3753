package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/heraldfs/heraldfs/internal/status"
	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/client"
	"github.com/heraldfs/heraldfs/protocol/transport"
)

func newStatusCommand() *cobra.Command {
	var asJSON bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "status [flags] MOUNTPOINT|SOCKET",
		Short: "Tell how a mount or a server is doing",
		Long: `Ask the process behind a mount, or the server at a unix socket, how it is doing: whether it is healthy,
what it has heard and told, how far it is behind, what was lost. Exits 1 if there is no answer, and 3 if
the answer is that it is not healthy.

Only root and the user that the process runs as get an answer. A mount needs no preparation; it can be
asked inside of a guest as well, by root. --metrics of the other commands has the same numbers.`,
		Example: `  heraldfs status /srv/guest/src

  # the server at its default socket
  heraldfs status unix:

  heraldfs status --json /mnt | jq .replay.backlog_events`,
		Args: exactArgs(1, "a MOUNTPOINT or a SOCKET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			doc, err := inTime(ctx, func() ([]byte, error) { return askStatus(ctx, args[0]) })
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("status %s: no answer in %s; its process is there and does not react", args[0], timeout)
			}
			if err != nil {
				return err
			}
			st, err := status.Parse(doc)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				enc := json.NewEncoder(out)
				enc.SetIndent("", "  ")
				err = enc.Encode(json.RawMessage(doc))
			} else {
				err = st.Text(out, time.Now())
			}
			if err == nil && !st.Healthy {
				return &exitError{code: 3}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().DurationVarP(&timeout, "timeout", "t", 10*time.Second, "give up after this time")
	return cmd
}

// inTime returns what f does, or ctx's error: a system call on a mount may wait for ever.
func inTime[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// askStatus gets the document from whatever is at arg.
func askStatus(ctx context.Context, arg string) ([]byte, error) {
	if transport.IsURL(arg) {
		u, err := transport.Parse(arg)
		if err != nil {
			return nil, err
		}
		return serverStatus(ctx, u)
	}
	st, err := os.Stat(arg)
	switch {
	case errors.Is(err, syscall.ENOTCONN), errors.Is(err, syscall.ECONNABORTED), errors.Is(err, syscall.ECANCELED):
		return nil, deadMount("status", arg)
	case err != nil:
		return nil, fmt.Errorf("status: %w", err)
	case st.Mode().Type() == fs.ModeSocket:
		return serverStatus(ctx, &transport.URL{Network: "unix", Path: arg})
	}
	return mountStatus(arg)
}

func deadMount(what, path string) error {
	return fmt.Errorf("%s %s: its daemon is dead; `heraldfs umount %s` cleans up", what, path, path)
}

// serverStatus asks the server that listens at u.
func serverStatus(ctx context.Context, u *transport.URL) ([]byte, error) {
	if u.Network != "unix" {
		return nil, fmt.Errorf("status %s: a server tells this on its unix socket only; from elsewhere ask its --metrics", u)
	}
	doc, err := client.Inquire(ctx, client.Options{
		Dial: func(ctx context.Context) (net.Conn, error) { return u.Dial(ctx, nil) },
		Conn: protocol.Options{Agent: agent()},
	})
	switch {
	case err == nil:
		return doc, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("status %s: nobody listens there, its server is dead", u.Path)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, protocol.ErrAuth), errors.Is(err, protocol.ErrForbidden):
		return nil, fmt.Errorf("status %s: only root and the user that the server runs as may ask: %w", u.Path, err)
	case errors.Is(err, protocol.ErrNotHerald), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return nil, fmt.Errorf("status %s: what listens there is no heraldfs server: %w", u.Path, err)
	}
	return nil, fmt.Errorf("status %s: %w", u.Path, err)
}
