package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	guestagent "github.com/heraldfs/heraldfs/agent"
	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/transport"
)

// agentCommandFlags are the flags of `heraldfs agent`.
type agentCommandFlags struct {
	connect  string
	security securityFlags
	log      logFlags
}

func newAgentCommand() *cobra.Command {
	var f agentCommandFlags
	cmd := &cobra.Command{
		Use:   "agent [flags] MOUNTPOINT",
		Short: "In a virtual machine: make the watchers of a virtiofs mount hear host changes",
		Long: `Runs in a virtual machine whose MOUNTPOINT is a virtiofs mount served by heraldfs virtiofs
--agent-listen on the host. Repeats on the mount what happens on the host, so that the guest's own kernel tells every
inotify and fanotify watcher, and keeps what the guest has cached fresh.

Where the host is (--connect):

  virtio:NAME       the virtio-serial port of that name (the default: virtio:` + guestagent.PortName + `)
  vsock://2:PORT    the host by vsock
  tcp://HOST:PORT   with --tls-cert, --tls-key and --tls-ca; on a loopback address --token-file will do

Waits for the mount and for the host, as often as need be. Needs root. SIGINT and SIGTERM end it. Without it
the mount works as well, but nothing is heard and names and attributes are cached for one second only.`,
		Example: `  mount -t virtiofs src /mnt
  heraldfs agent /mnt

  # in busybox's /etc/inittab
  ::respawn:/usr/bin/heraldfs agent /mnt`,
		Args: exactArgs(1, "MOUNTPOINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.Context(), args[0])
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.connect, "connect", "virtio:"+guestagent.PortName, "`URL` of the host, see above")
	f.security.register(fs)
	f.log.register(fs)
	return cmd
}

// channel returns what opens a channel to the host.
func (f *agentCommandFlags) channel(sec *transport.Security) (func(context.Context) (protocol.Channel, error), error) {
	if name, ok := strings.CutPrefix(f.connect, "virtio:"); ok {
		if name == "" {
			return nil, fmt.Errorf("--connect %s: give the name of a virtio-serial port, as in virtio:%s", f.connect, guestagent.PortName)
		}
		return func(context.Context) (protocol.Channel, error) { return guestagent.OpenPort(name) }, nil
	}
	u, err := transport.Parse(f.connect)
	if err != nil {
		return nil, fmt.Errorf("--connect: %w", err)
	}
	if err := u.SafeToDial(sec); err != nil {
		return nil, fmt.Errorf("--connect: %w", err)
	}
	return func(ctx context.Context) (protocol.Channel, error) { return u.Dial(ctx, sec) }, nil
}

func (f *agentCommandFlags) run(ctx context.Context, mountpoint string) error {
	logger, closeLog, err := f.log.open(false)
	if err != nil {
		return err
	}
	defer closeLog()
	sec, err := f.security.load()
	if err != nil {
		return err
	}
	open, err := f.channel(sec)
	if err != nil {
		return err
	}
	if err := checkMountpoint(mountpoint); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	// What is made has the mode that the host asks for.
	unix.Umask(0)
	host, _ := os.Hostname()
	// Ready is who waits for the mount and the host: neither has to be there for the guest to go on starting.
	daemon.SdNotify(false, daemon.SdNotifyReady)
	err = guestagent.Run(ctx, guestagent.Options{
		Mountpoint: mountpoint, Open: open, Token: sec.Token(), Name: "heraldfs agent " + host, Logger: logger,
	})
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	return err
}
