//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify/replay"
	"github.com/heraldfs/heraldfs/server/fusedev"
)

func newSyncCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "sync [flags] MOUNTPOINT",
		Short: "Return when every earlier host change is visible and heard in the mount",
		Long: `Return when every change that was made to SOURCE before this command started is visible
in the mount and its events have been delivered to the watchers there. Works inside a guest, too.`,
		Example: `  cp -r build/. /data/www && heraldfs sync /mnt/www`,
		Args:    exactArgs(1, "MOUNTPOINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return syncMount(cmd.Context(), args[0], timeout)
		},
	}
	cmd.Flags().DurationVarP(&timeout, "timeout", "t", 30*time.Second, "give up after this time")
	return cmd
}

func syncMount(ctx context.Context, path string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := inTime(ctx, func() (int, error) {
		var buf [16]byte
		for {
			// The runtime's own signals interrupt a call that waits.
			if n, err := unix.Getxattr(path, replay.SyncAttr, buf[:]); !errors.Is(err, unix.EINTR) {
				return n, err
			}
		}
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("sync %s: not caught up after %s", path, timeout)
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
		if mountTypeOf(path) == "virtiofs" {
			return fmt.Errorf("sync %s: no agent (heraldfs agent %s) is connected to the host's heraldfs virtiofs --agent-listen", path, path)
		}
		if _, merr := findMount(path); merr != nil {
			return fmt.Errorf("sync: %w", merr)
		}
		return fmt.Errorf("sync %s: this mount delivers no events; it was mounted with --notify=off", path)
	case fusedev.Dead(err):
		return deadMount("sync", path)
	}
	return fmt.Errorf("sync %s: %w", path, err)
}
