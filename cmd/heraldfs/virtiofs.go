//go:build linux

package main

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/heraldfs/heraldfs/server/guest"
	"github.com/heraldfs/heraldfs/server/passthrough"
	"github.com/heraldfs/heraldfs/server/virtiofs"
)

// virtiofsFlags are the flags of `heraldfs virtiofs`, named as virtiofsd's where it has them.
type virtiofsFlags struct {
	socket      string
	tag         string
	cache       string
	fileHandles string
	readOnly    bool
	queues      int
	sandbox     string
	fd          int
	announce    string
	maxNodes    int
	once        bool
	socketGroup string
	printCaps   bool
	metrics     metricsFlag
	agent       agentFlags
	log         logFlags
}

func newVirtiofsCommand() *cobra.Command {
	var f virtiofsFlags
	cmd := &cobra.Command{
		Use:   "virtiofs --socket PATH [flags] DIR",
		Short: "Share DIR with a virtual machine by virtiofs",
		Long: `Serve the directory DIR to a virtual machine: the vhost-user back-end of a virtio-fs device. The
virtual machine monitor (QEMU, libvirt, Cloud Hypervisor) connects to the socket, and the guest, any Linux
from 5.4 on, mounts it with: mount -t virtiofs TAG /mnt

Stays in the foreground and serves one machine at a time; when that has gone, the next one may connect.
SIGINT and SIGTERM end it. The socket has mode 0600.

The process is confined to DIR (--sandbox). As root it runs in namespaces of its own, with DIR alone in sight and
without most capabilities; a second process stays outside and waits for it.`,
		Example: `  # share ./src
  heraldfs virtiofs --socket /run/vm1-src.sock ./src

  # the QEMU options that go with it
  qemu-system-x86_64 ... -m 2G \
    -object memory-backend-memfd,id=mem,size=2G,share=on -numa node,memdev=mem \
    -chardev socket,id=fs0,path=/run/vm1-src.sock \
    -device vhost-user-fs-pci,queue-size=1024,chardev=fs0,tag=src

  # with the agent in the guest (heraldfs agent /mnt): host changes are heard there
  heraldfs virtiofs --socket /run/vm1-src.sock --agent-listen unix:///run/vm1-agent.sock ./src
  qemu-system-x86_64 ... -device virtio-serial-pci \
    -chardev socket,id=agent0,path=/run/vm1-agent.sock,reconnect=1 \
    -device virtserialport,chardev=agent0,name=org.heraldfs.agent.0

  # nothing else changes DIR: the guest may cache for long
  heraldfs virtiofs --socket /run/vm1.sock --cache always /srv/images`,
		Args: func(cmd *cobra.Command, args []string) error {
			if f.printCaps {
				return nil
			}
			return exactArgs(1, "DIR")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.printCaps {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), `{"type": "fs"}`)
				return err
			}
			return f.run(cmd.Context(), args[0])
		},
	}
	f.register(cmd.Flags())
	return cmd
}

func (f *virtiofsFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.socket, "socket", "", "where the virtual machine monitor connects (required)")
	fs.StringVar(&f.tag, "tag", "", "name of the share, for monitors that ask the back-end for it;\nQEMU has it on its own command line")
	fs.StringVar(&f.cache, "cache", "auto", "how long the guest may keep names and attributes: never, auto (1s) or\nalways (a day, and file contents over opens; for what only the guest changes)")
	fs.StringVar(&f.fileHandles, "inode-file-handles", "prefer", "reach files by handle instead of by open descriptor: never, prefer or mandatory")
	fs.BoolVarP(&f.readOnly, "read-only", "r", false, "refuse every change")
	fs.IntVar(&f.queues, "queues", 8, "largest number of request queues that the monitor may use")
	fs.StringVar(&f.sandbox, "sandbox", "", "how to confine the process to DIR: namespace (the default of root), chroot,\nlandlock (the default of others) or none")
	fs.IntVar(&f.fd, "fd", -1, "use this descriptor, a listening socket, in place of --socket")
	fs.StringVar(&f.socketGroup, "socket-group", "", "let this group connect, too: the socket becomes the group's, with mode 0660")
	fs.BoolVar(&f.once, "once", false, "end when the virtual machine monitor has disconnected")
	fs.BoolVar(&f.printCaps, "print-capabilities", false, "print what kind of vhost-user back-end this is, for management tools, and end")
	fs.StringVar(&f.announce, "announce-submounts", "on", "show file systems mounted below DIR as mounts, with device numbers of their own: on or off")
	fs.Lookup("announce-submounts").NoOptDefVal = "on"
	fs.IntVar(&f.maxNodes, "max-nodes", 0, "how many files the guest may know at a time; 0 is what fits into its memory, -1 no bound")
	f.metrics.register(fs)
	f.agent.register(fs)
	f.log.register(fs)
}

func (f *virtiofsFlags) options(logger *slog.Logger) (passthrough.Options, error) {
	o := passthrough.Options{ReadOnly: f.readOnly, ForeignPids: true, Logger: logger}
	keep := time.Duration(0)
	switch f.cache {
	case "never":
	case "auto":
		keep = guest.PlainCache
	case "always":
		keep = 24 * time.Hour
		o.KeepCache = true
	default:
		return o, fmt.Errorf("--cache %q: give never, auto or always", f.cache)
	}
	o.EntryTimeout, o.AttrTimeout, o.NegativeTimeout = keep, keep, keep
	switch f.fileHandles {
	case "never":
		o.FileHandles = passthrough.HandleNever
	case "prefer":
		o.FileHandles = passthrough.HandlePrefer
	case "mandatory":
		o.FileHandles = passthrough.HandleMandatory
	default:
		return o, fmt.Errorf("--inode-file-handles %q: give never, prefer or mandatory", f.fileHandles)
	}
	if f.announce != "on" && f.announce != "off" {
		return o, fmt.Errorf("--announce-submounts %q: give on or off", f.announce)
	}
	if f.maxNodes < -1 {
		return o, fmt.Errorf("--max-nodes %d: give a number, 0 or -1", f.maxNodes)
	}
	if f.queues < 1 || f.queues > virtiofs.MaxQueues {
		return o, fmt.Errorf("--queues %d: give 1 to %d", f.queues, virtiofs.MaxQueues)
	}
	return o, nil
}
