//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/server/fusedev"
)

func newUmountCommand() *cobra.Command {
	var lazy, force, quiet bool
	cmd := &cobra.Command{
		Use:     "umount [flags] MOUNTPOINT...",
		Aliases: []string{"unmount"},
		Short:   "Unmount heraldfs mounts; also those whose daemon is dead",
		Example: `  heraldfs umount /mnt

  # take it off even if it is in use; whoever still uses it gets errors (ENOTCONN)
  heraldfs umount --lazy /mnt

  # its daemon does not answer any more, or cannot die: every request that waits for it fails
  heraldfs umount --force /mnt`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("%s needs a MOUNTPOINT; see `%s --help`", cmd.CommandPath(), cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, path := range args {
				err := umount(path, lazy, force)
				if quiet && errors.Is(err, errNotMounted) {
					err = nil
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVarP(&lazy, "lazy", "l", false, "detach now, even if in use")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "end the connection to the daemon first, even if it hangs; implies --lazy")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "it is no error if nothing is mounted there")
	return cmd
}

// umount takes one mount off and waits until the mount table shows it.
func umount(path string, lazy, force bool) error {
	m, err := findMount(path)
	if err != nil {
		return err
	}
	if force {
		if err := fusedev.Abort(uint32(m.Minor)); err != nil {
			return fmt.Errorf("umount --force %s: %w", path, err)
		}
		lazy = true
	}
	err = umountAt(m.Mountpoint, lazy)
	if errors.Is(err, unix.EBUSY) && !lazy && fusedev.Dead(answer(m.Mountpoint)) {
		// Whoever is in a dead mount can do nothing there any more.
		err = umountAt(m.Mountpoint, true)
	}
	if err != nil {
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("umount %s: it is in use (`fuser -vm %s` says by whom); close that, or use --lazy, or --force if it hangs", path, path)
		}
		return fmt.Errorf("umount %s: %w", path, err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; {
		now, err := findMount(path)
		if err != nil || now.ID != m.ID {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("umount %s: still mounted", path)
		}
		time.Sleep(time.Millisecond)
	}
}

// answer is what statfs(2) says of a mount, or ETIMEDOUT.
func answer(point string) error {
	said := make(chan error, 1)
	go func() { said <- unix.Statfs(point, new(unix.Statfs_t)) }()
	select {
	case err := <-said:
		return err
	case <-time.After(time.Second):
		return unix.ETIMEDOUT
	}
}

func umountAt(point string, lazy bool) error {
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		return unix.Unmount(point, flags)
	}
	args := []string{"-u"}
	if lazy {
		args = append(args, "-z")
	}
	for _, helper := range []string{"fusermount3", "fusermount"} {
		path, err := exec.LookPath(helper)
		if err != nil {
			continue
		}
		out, err := exec.Command(path, append(args, "--", point)...).CombinedOutput()
		text := strings.TrimSpace(string(out))
		switch {
		case err == nil:
			return nil
		case strings.Contains(text, "busy"):
			return unix.EBUSY
		}
		return fmt.Errorf("%s: %s", helper, text)
	}
	return errors.New("fusermount3 is missing; install the package fuse3, or unmount as root")
}
