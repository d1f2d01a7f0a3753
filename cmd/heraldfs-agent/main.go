// Command heraldfs-agent is `heraldfs agent` alone, for guests in which every megabyte counts.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/agent"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "heraldfs-agent:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	fs := pflag.NewFlagSet("heraldfs-agent", pflag.ContinueOnError)
	var f agent.Flags
	f.Register(fs)
	level := fs.String("log-level", "info", "debug, info, warn or error")
	fs.Usage = func() {
		fmt.Printf("Usage: heraldfs-agent [flags] MOUNTPOINT\n\n"+
			"In a virtual machine: makes the watchers of the virtiofs mount MOUNTPOINT hear what happens on the host.\n\n%s\n\nFlags:\n%s", agent.Usage, fs.FlagUsages())
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() != 1 {
		return fmt.Errorf("one MOUNTPOINT is needed, got %d arguments; see heraldfs-agent --help", fs.NArg())
	}
	var l slog.Level
	if err := l.UnmarshalText([]byte(*level)); err != nil {
		return fmt.Errorf("--log-level %q: give debug, info, warn or error", *level)
	}
	host, _ := os.Hostname()
	o := agent.Options{
		Mountpoint: fs.Arg(0), Name: "heraldfs-agent " + host,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l})),
	}
	if err := f.Options(&o); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	unix.Umask(0) // what is made has the mode that the host asks for
	daemon.SdNotify(false, daemon.SdNotifyReady)
	defer daemon.SdNotify(false, daemon.SdNotifyStopping)
	return agent.Run(ctx, o)
}
