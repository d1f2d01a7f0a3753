//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/server/fusedev"
	"github.com/heraldfs/heraldfs/server/passthrough"
	"github.com/heraldfs/heraldfs/watcher"
)

// finding is one line of doctor's report.
type finding struct {
	What string `json:"what"`
	OK   bool   `json:"ok"`
	Says string `json:"says"`
	// Fix is how to get more, if there is something to do.
	Fix string `json:"fix,omitempty"`
}

func newDoctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor [flags] [SOURCE]",
		Short: "Say what this kernel, these privileges and this file system allow, and how to get more",
		Long: `Try what heraldfs needs, on SOURCE (the current directory if not given), by really doing it: watches,
file handles, a mount, each notification to the kernel. Nothing is left behind.

Exits 0 if events can be delivered, 1 if not.`,
		Example: `  heraldfs doctor /srv/data
  sudo heraldfs doctor --json /srv/data`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("%s takes one SOURCE; see `%s --help`", cmd.CommandPath(), cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			source := "."
			if len(args) == 1 {
				source = args[0]
			}
			src, err := checkSource(source)
			if err != nil {
				return err
			}
			return doctor(cmd.Context(), cmd.OutOrStdout(), src, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func doctor(ctx context.Context, out io.Writer, src string, asJSON bool) error {
	report := watcher.Probe(src)
	if report.Err != nil {
		return report.Err
	}
	lines := watchFindings(report)
	mount, mounted := mountFindings(ctx, src, report.Chosen)
	lines = append(lines, mount...)
	works := report.Chosen != "" && mounted
	if asJSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(map[string]any{"source": src, "fstype": report.FSType, "watcher": report.Chosen, "ok": works, "findings": lines}); err != nil {
			return err
		}
	} else {
		printFindings(out, src, report, lines)
	}
	if !works {
		return errors.New("events cannot be delivered here; see the lines marked 'no'")
	}
	return nil
}

func printFindings(out io.Writer, src string, report watcher.Report, lines []finding) {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		fmt.Fprintf(out, "kernel   %s\n", unix.ByteSliceToString(u.Release[:]))
	}
	fmt.Fprintf(out, "source   %s (%s)\n\n", src, report.FSType)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, f := range lines {
		mark := "yes"
		if !f.OK {
			mark = "no"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", mark, f.What, f.Says)
		if f.Fix != "" {
			fmt.Fprintf(w, "\t\t-> %s\n", f.Fix)
		}
	}
	w.Flush()
	fmt.Fprintf(out, "\n`heraldfs mount` would watch with %s: %s\n", report.Chosen, report.Why)
}

func watchFindings(r watcher.Report) []finding {
	var out []finding
	for _, v := range r.Verdicts {
		f := finding{What: "watch with " + v.Backend, OK: v.Works, Says: "works", Fix: v.Advice}
		if v.Err != nil {
			f.Says = v.Err.Error()
		}
		out = append(out, f)
	}
	handles := finding{What: "file handles", OK: r.Handles == sys.HandleOpenable, Says: r.Handles.String()}
	if handles.OK && !r.DacReadSearch {
		handles.OK, handles.Says = false, "cannot be opened without CAP_DAC_READ_SEARCH: each file known to the guest takes a descriptor"
		handles.Fix = "run as root, and raise the limit of open files (ulimit -n)"
	}
	return append(out, handles)
}

// mountFindings mounts an empty directory and tries each notification on it.
func mountFindings(ctx context.Context, source, chosen string) (out []finding, mounted bool) {
	dev := finding{What: "/dev/fuse", OK: true, Says: "can be opened"}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		dev.OK, dev.Says = false, err.Error()
		dev.Fix = "modprobe fuse; in a container --device /dev/fuse; its mode is 0666 on most systems"
	} else {
		f.Close()
	}
	out = append(out, dev)
	if os.Geteuid() != 0 {
		helper := finding{What: "fusermount3", OK: true, Says: "installed"}
		if _, err := exec.LookPath("fusermount3"); err != nil {
			helper.OK, helper.Says, helper.Fix = false, "missing: only root can mount", "install the package fuse3"
		}
		out = append(out, helper)
	}
	more, err := tryMount(ctx, source, chosen)
	probe := finding{What: "mount", OK: err == nil, Says: "works"}
	if err != nil {
		probe.Says = err.Error()
	}
	return append(append(out, probe), more...), err == nil
}

func tryMount(ctx context.Context, source, chosen string) (out []finding, err error) {
	top, err := os.MkdirTemp("", "heraldfs-doctor-")
	if err != nil {
		return nil, err
	}
	src, mnt := filepath.Join(top, "source"), filepath.Join(top, "mount")
	defer func() {
		// Never descend: should the mount still be there, its files are not ours.
		err = errors.Join(err, os.Remove(mnt), os.Remove(src), os.Remove(top))
	}()
	if err := errors.Join(os.Mkdir(src, 0o700), os.Mkdir(mnt, 0o700)); err != nil {
		return nil, err
	}
	fs, err := passthrough.New(src, passthrough.Options{NoOpendir: true, KeepCache: true})
	if err != nil {
		return nil, err
	}
	defer fs.Close()
	opts := fusedev.Options{Fuse: fs.MountOptions()}
	opts.Fuse.DisabledCapabilities, opts.Fuse.MaxStackDepth = 0, 1 // as a mount with passthrough
	conn, err := fusedev.Mount(mnt, fs, opts)
	if err != nil {
		return nil, err
	}
	served := make(chan error, 1)
	go func() { served <- conn.Serve(context.Background()) }()
	defer func() { err = errors.Join(err, conn.Close(), <-served) }()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := conn.WaitReady(ctx); err != nil {
		return nil, err
	}
	n := conn.Notify()
	for _, try := range []struct {
		what, without string
		err           error
	}{
		{"notify INVAL_INODE", "caches cannot be kept coherent", n.InvalInode(fuse.FUSE_ROOT_ID, -1, 0)},
		{"notify INVAL_ENTRY, expire only", "needs Linux 6.2", n.InvalEntry(fuse.FUSE_ROOT_ID, "x", true)},
		{"notify DELETE", "what is gone is forgotten later", n.Delete(fuse.FUSE_ROOT_ID, fuse.FUSE_ROOT_ID, "x")},
		{"notify RESEND", "needs Linux 6.9; only a takeover of a dead daemon's mount uses it", n.Resend()},
		{"notify INC_EPOCH", "needs Linux 6.16; after a loss entries are expired one by one", n.IncEpoch()},
		{"notify PRUNE", "needs Linux 6.18", n.Prune(2)},
	} {
		f := finding{What: try.what, OK: !errors.Is(try.err, notify.ErrNotSupported), Says: "works"}
		if !f.OK {
			f.Says = try.without
		}
		out = append(out, f)
	}
	return append(out, passes(conn, source, chosen), overIOURing(conn), private(conn)), nil
}

// overIOURing tells how requests came.
func overIOURing(conn *fusedev.Conn) finding {
	f := finding{What: "FUSE over io_uring", OK: conn.OverIOURing(), Says: "works: requests cost less"}
	if !f.OK {
		f.Says = "not used: requests are read from the device"
		if err := fusedev.IOURingOffered(); err != nil {
			f.Says += ", since " + err.Error()
			f.Fix = "see 'Faster requests' in operations.md"
		}
	}
	return f
}

// passes tells of FUSE passthrough I/O with the files of source.
func passes(conn *fusedev.Conn, source, chosen string) finding {
	f := finding{What: "FUSE passthrough I/O", Says: "not offered by this kernel (Linux 6.9): all files are read through the daemon"}
	if out := conn.Negotiated(); out.Flags64()&fuse.CAP_PASSTHROUGH == 0 {
		return f
	}
	fd, err := someFile(source)
	if err != nil {
		f.Says = "offered, but not tried: " + err.Error()
		return f
	}
	defer unix.Close(fd)
	id, err := conn.BackingOpen(fd)
	switch {
	case errors.Is(err, unix.EPERM):
		f.Says, f.Fix = "needs CAP_SYS_ADMIN: all files are read through the daemon", "run as root"
	case errors.Is(err, unix.ELOOP):
		f.Says = "not with a SOURCE on a stacked file system: all files are read through the daemon"
	case err != nil:
		f.Says = err.Error()
	case chosen != watcher.Fanotify:
		f.Says = "works, but mount uses it only with fanotify's filesystem marks or with --notify=off: others cannot tell whose reads they are"
	default:
		f.OK, f.Says = true, "works: large files are read without the daemon"
	}
	if err == nil {
		_ = conn.BackingClose(id) // it ends with the mount
	}
	return f
}

// someFile opens a regular file in dir with O_PATH.
func someFile(dir string) (int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return -1, err
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			return unix.Open(filepath.Join(dir, e.Name()), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		}
	}
	return -1, errors.New("SOURCE has no regular file of its own")
}

func private(conn *fusedev.Conn) finding {
	f := finding{What: "private view of the mount", OK: true, Says: "works: the mount is never busy because of us"}
	fd, err := conn.PrivateRoot()
	if err != nil {
		f.OK, f.Says = false, "events are replayed on the visible mount; an unmount may find it busy for a moment"
		return f
	}
	unix.Close(fd)
	return f
}
