package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify/replay"
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
	done := make(chan error, 1)
	go func() {
		var buf [16]byte
		for {
			_, err := unix.Getxattr(path, replay.SyncAttr, buf[:])
			// The runtime's own signals interrupt a call that waits.
			if !errors.Is(err, unix.EINTR) {
				done <- err
				return
			}
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		return fmt.Errorf("sync %s: not caught up after %s", path, timeout)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
		if _, merr := findMount(path); merr != nil {
			return fmt.Errorf("sync: %w", merr)
		}
		return fmt.Errorf("sync %s: this mount delivers no events; it was mounted with --notify=off", path)
	case errors.Is(err, unix.ENOTCONN):
		return fmt.Errorf("sync %s: its daemon is dead; `heraldfs umount %s` cleans up", path, path)
	}
	return fmt.Errorf("sync %s: %w", path, err)
}
