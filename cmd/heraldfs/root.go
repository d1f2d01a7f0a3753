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
		Version:       readVersion().Version,
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
	root.SetVersionTemplate("heraldfs {{.Version}}\n")
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
	addCompletion(root)
	return root
}

// addCompletion adds cobra's own command, with examples and without a silent success for a shell
// that it does not know.
func addCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() != "completion" {
			continue
		}
		cmd.Example = `  source <(heraldfs completion bash)
  heraldfs completion zsh > "${fpath[1]}/_heraldfs"
  heraldfs completion fish > ~/.config/fish/completions/heraldfs.fish`
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown shell %q; see `%s --help`", args[0], cmd.CommandPath())
			}
			return nil
		}
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		for _, shell := range cmd.Commands() {
			shell.Example = "  heraldfs completion " + shell.Name()
		}
	}
}

func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return fmt.Errorf("%s needs %s, got %d argument(s); see `%s --help`", cmd.CommandPath(), what, len(args), cmd.CommandPath())
		}
		return nil
	}
}
