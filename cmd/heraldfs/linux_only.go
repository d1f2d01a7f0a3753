//go:build !linux

package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

// needsLinux is a command that this system cannot have.
func needsLinux(name, short string) *cobra.Command {
	return &cobra.Command{
		Use:                name + " ...",
		Short:              short + " (Linux only)",
		DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error {
			return fmt.Errorf("%s needs Linux, this is %s; `serve` and `watch` are there everywhere", name, runtime.GOOS)
		},
	}
}

func newMountCommand() *cobra.Command {
	return needsLinux("mount", "Mount SOURCE so that watchers in the mount hear what happens to it from outside")
}

func newUmountCommand() *cobra.Command { return needsLinux("umount", "Unmount heraldfs mounts") }

func newSyncCommand() *cobra.Command {
	return needsLinux("sync", "Wait until a mount shows, and has told, every change made so far")
}

func newVirtiofsCommand() *cobra.Command {
	return needsLinux("virtiofs", "Share a directory with a virtual machine")
}

func newDoctorCommand() *cobra.Command { return needsLinux("doctor", "Say what works on this machine") }

func newDemoCommand() *cobra.Command {
	return needsLinux("demo", "Show host changes being heard in a mount")
}

// reportReady is for processes that were sent to the background.
func reportReady(error) {}

// mountStatus is what a mount has to tell.
func mountStatus(path string) ([]byte, error) {
	return nil, fmt.Errorf("status %s: it is no socket of a server, and mounts need Linux", path)
}

func newAgentCommand() *cobra.Command {
	return needsLinux("agent", "In a virtual machine: make the watchers of a virtiofs mount hear host changes")
}
