package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "heraldfs",
		Short: "Host file changes, heard in every mount",
		Long: `heraldfs shows a host directory to guests (containers, chroots, virtual machines) such that their file
watchers hear what happens to it from outside, as the very inotify events that a native mount delivers.

It is also a recursive watcher of its own: heraldfs watch.`,
		Example: `  # see it work
  sudo heraldfs demo

  # a mount whose watchers hear of changes in ./src
  sudo heraldfs mount ./src /mnt

  # every change below a directory, one line each
  heraldfs watch ./src

  # what works on this machine, and how to get more
  heraldfs doctor`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q; see `%s --help`", args[0], cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath())
	})
	root.AddCommand(
		newMountCommand(),
		newUmountCommand(),
		newSyncCommand(),
		newStatusCommand(),
		newWatchCommand(),
		newServeCommand(),
		newVirtiofsCommand(),
		newAgentCommand(),
		newDoctorCommand(),
		newDemoCommand(),
		newVersionCommand(),
		newManCommand(),
	)
	return root
}

func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return fmt.Errorf("%s needs %s, got %d argument(s); see `%s --help`", cmd.CommandPath(), what, len(args), cmd.CommandPath())
		}
		return nil
	}
}
