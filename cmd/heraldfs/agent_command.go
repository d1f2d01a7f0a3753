//go:build linux

package main

import (
	"os"
	"os/signal"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	guestagent "github.com/heraldfs/heraldfs/internal/agent"
)

func newAgentCommand() *cobra.Command {
	var f guestagent.Flags
	var log logFlags
	cmd := &cobra.Command{
		Use:   "agent [flags] MOUNTPOINT",
		Short: "In a virtual machine: make the watchers of a virtiofs mount hear host changes",
		Long: `Runs in a virtual machine whose MOUNTPOINT is a virtiofs mount served by heraldfs virtiofs
--agent-listen on the host. Repeats on the mount what happens on the host, so that the guest's own kernel tells every
inotify and fanotify watcher, and keeps what the guest has cached fresh.

The program heraldfs-agent is this command alone, in less than half the size.

` + guestagent.Usage,
		Example: `  mount -t virtiofs src /mnt
  heraldfs agent /mnt

  # in busybox's /etc/inittab
  ::respawn:/usr/bin/heraldfs-agent /mnt`,
		Args: exactArgs(1, "MOUNTPOINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			logger, closeLog, err := log.open(false)
			if err != nil {
				return err
			}
			defer closeLog()
			host, _ := os.Hostname()
			o := guestagent.Options{Mountpoint: args[0], Name: "heraldfs agent " + host, Logger: logger}
			if err := f.Options(&o); err != nil {
				return err
			}
			if err := checkMountpoint(o.Mountpoint); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
			defer stop()
			// What is made has the mode that the host asks for.
			unix.Umask(0)
			// It waits for the mount and the host itself: neither has to be there for the guest to go on starting.
			daemon.SdNotify(false, daemon.SdNotifyReady)
			defer daemon.SdNotify(false, daemon.SdNotifyStopping)
			return guestagent.Run(ctx, o)
		},
	}
	f.Register(cmd.Flags())
	log.register(cmd.Flags())
	return cmd
}
