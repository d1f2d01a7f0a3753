//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/mountopt"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/echo"
	"github.com/heraldfs/heraldfs/server/fusedev"
	"github.com/heraldfs/heraldfs/server/guest"
	"github.com/heraldfs/heraldfs/server/passthrough"
	"github.com/heraldfs/heraldfs/watcher"
)

// mountFlags are the flags of `heraldfs mount`. Each can also stand in -o by its
// name without dashes.
type mountFlags struct {
	daemon             bool
	notify             string
	mask               string
	cacheTimeout       time.Duration
	watcher            string
	fileHandles        string
	readOnly           bool
	allowOther         bool
	defaultPermissions bool
	fsname             string
	options            []string
	dryRun, sloppy     bool
	noOpen             bool
	passthrough        string
	ioURing            string
	autoUnmount        bool
	passthroughMin     int64
	limitedQueue       bool
	maxNodes           int
	metrics            metricsFlag
	remote             shareFlags
	log                logFlags

	set  *pflag.FlagSet
	opts mountopt.Options
}

func newMountCommand() *cobra.Command {
	var f mountFlags
	cmd := &cobra.Command{
		Use:   "mount [flags] SOURCE MOUNTPOINT",
		Short: "Mount SOURCE so that watchers in the mount hear what happens to it from outside",
		Long: `Mount the directory SOURCE on the directory MOUNTPOINT. The mount shows SOURCE as it is, and every
inotify or fanotify watcher in it hears what other processes do to SOURCE, as on a native bind mount.
Bind MOUNTPOINT into a container or chroot to give it to a guest.

Stays in the foreground; SIGINT and SIGTERM unmount cleanly. As root, other users may enter
(allow_other) and the kernel checks permissions (default_permissions).

With --events, SOURCE is this machine's view of a folder that somebody else shares (virtiofs, 9p, NFS, SMB,
vboxsf, a FUSE file system, a bind mount), and what happens to it is told by heraldfs serve on the host. An
event is delivered when SOURCE shows what it tells, or after --settle-timeout. What is done through
the mount is heard once; if the server knows the file server of this SOURCE by a name (serve --origin), give
it, and nobody else's changes can be mistaken for ours. Without a connection files are served on, with
cache times of a second; when it is back, what was missed is told.`,
		Example: `  # show ./src to a container, with events
  heraldfs mount ./src /srv/guest/src

  # return when mounted; end with: heraldfs umount /mnt
  heraldfs mount --daemon /data /mnt

  # without events: a plain passthrough with short cache times
  heraldfs mount --notify=off /data /mnt

  # only deletes and renames are heard
  heraldfs mount --mask=delete,move /data /mnt

  # over a share of another program; the host runs heraldfs serve
  heraldfs mount --events vsock://2:7433 /mnt/virtiofs /srv/src

  # through mount(8), and as a line of /etc/fstab
  mount -t fuse.heraldfs /data /mnt -o ro,noexec
  /data  /mnt  fuse.heraldfs  defaults,nofail  0 0`,
		Args: exactArgs(2, "SOURCE and MOUNTPOINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.Context(), args[0], args[1])
		},
	}
	f.register(cmd.Flags())
	return cmd
}

func (f *mountFlags) register(fs *pflag.FlagSet) {
	f.set = fs
	root := os.Geteuid() == 0
	fs.BoolVarP(&f.daemon, "daemon", "d", false, "return when mounted, and serve in the background")
	fs.StringVar(&f.notify, "notify", "on", "deliver host events to the guest's watchers: on or off")
	fs.StringVarP(&f.mask, "mask", "e", "default", "events that are delivered, comma separated: create, delete, modify, attrib, move,\nclose_write, open, close_nowrite, access, default (all but the last three), all")
	fs.DurationVar(&f.cacheTimeout, "cache-timeout", 0, "how long the guest's kernel may keep names and attributes\n(default 1h with events, 1s without)")
	fs.StringVar(&f.watcher, "watcher", watcher.Auto, "how changes of SOURCE are heard of: auto, fanotify or inotify")
	fs.StringVar(&f.fileHandles, "inode-file-handles", "prefer", "reach files by handle instead of by open descriptor: never, prefer or mandatory")
	fs.BoolVar(&f.noOpen, "no-open", false, "have the guest's kernel open and close files without asking: opens cost nothing, but locks\nare the guest's alone, and the host hears CLOSE_WRITE up to 0.2 s late (see semantics.md)")
	fs.BoolVar(&f.autoUnmount, "auto-unmount", false, "as root: take the mount off the mount point even if this process is killed")
	fs.StringVar(&f.passthrough, "passthrough", "auto", "have the guest's kernel read large files of SOURCE by itself where it can: auto or off\n(see operations.md)")
	fs.StringVar(&f.ioURing, "io-uring", "auto", "have requests come by FUSE over io_uring, which is faster: auto (where the kernel offers it), on (or fail) or off\n(see operations.md)")
	fs.BoolVarP(&f.readOnly, "read-only", "r", false, "mount read-only")
	fs.BoolVar(&f.allowOther, "allow-other", root, "let users other than the mounting one in")
	fs.BoolVar(&f.defaultPermissions, "default-permissions", root, "let the kernel check file modes and ACLs")
	fs.StringVar(&f.fsname, "fsname", "", "first field of /proc/mounts (default SOURCE)")
	fs.StringArrayVarP(&f.options, "options", "o", nil, "mount options as of mount(8), comma separated; the long flags above can\nstand here too, as in -o notify=off,mask=delete")
	fs.BoolVar(&f.dryRun, "dry-run", false, "check all that can be checked, and mount nothing")
	fs.BoolVar(&f.sloppy, "sloppy", false, "pass over unknown mount options instead of refusing them")
	fs.BoolVar(&f.limitedQueue, "limited-queue", false, "let the kernel bound fanotify's queue, as fs.fanotify.max_queued_events says")
	fs.Lookup("limited-queue").Hidden = true // for tests of an overflow
	fs.Int64Var(&f.passthroughMin, "passthrough-min", 0, "bytes from which a file is large")
	fs.Lookup("passthrough-min").Hidden = true // for tests and measurements
	fs.IntVar(&f.maxNodes, "max-nodes", 0, "ask the guest's kernel to let go of files that it does not use when it knows more than that;\n0 is no bound (see operations.md)")
	f.metrics.register(fs)
	f.remote.register(fs)
	f.log.register(fs)
}

// notOption are the flags that make no sense in fstab.
var notOption = map[string]bool{"options": true, "help": true, "daemon": true, "dry-run": true, "sloppy": true}

// fromOptions applies -o lists on top of the flags.
func (f *mountFlags) fromOptions() error {
	own := make(map[string]bool)
	f.set.VisitAll(func(fl *pflag.Flag) { own[fl.Name] = !notOption[fl.Name] })
	f.opts.Sloppy = f.sloppy
	for _, list := range f.options {
		if err := f.opts.Parse(list, own); err != nil {
			return err
		}
	}
	for _, p := range f.opts.Pairs {
		if err := f.set.Set(p[0], p[1]); err != nil {
			return fmt.Errorf("mount option %s=%s: %w", p[0], p[1], err)
		}
	}
	f.readOnly = f.readOnly || f.opts.ReadOnly
	if v := f.opts.AllowOther; v != nil {
		f.allowOther = *v
	}
	if v := f.opts.DefaultPermissions; v != nil {
		f.defaultPermissions = *v
	}
	if f.opts.FSName != "" {
		f.fsname = f.opts.FSName
	}
	return nil
}

func (f *mountFlags) run(ctx context.Context, source, mountpoint string) error {
	if err := f.fromOptions(); err != nil {
		return err
	}
	src, err := checkSource(source)
	if err != nil {
		return err
	}
	point, err := filepath.Abs(mountpoint)
	if err != nil {
		return err
	}
	if err := checkFree(src, point); err != nil {
		return err
	}
	if f.daemon && !f.dryRun && os.Getenv(readyEnv) == "" {
		return daemonize()
	}
	logger, closeLog, err := f.log.open(f.daemon)
	if err != nil {
		return err
	}
	defer closeLog()
	if f.daemon {
		// Keep no directory of the caller's busy.
		if err := os.Chdir("/"); err != nil {
			return err
		}
	}
	opts, err := f.guestOptions(src, point, logger)
	if err != nil {
		return err
	}
	if f.dryRun {
		if opts.Events != nil {
			opts.Events.Close()
		}
		if ln, err := f.metrics.listen(ctx); err != nil {
			return err
		} else if ln != nil {
			ln.Close()
		}
		return checkMountpoint(point)
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer stop()
	report := &mountReport{started: time.Now(), src: src, point: point}
	stopMetrics, err := f.metrics.start(ctx, report.status, logger)
	if err != nil {
		if opts.Events != nil {
			opts.Events.Close()
		}
		return err
	}
	defer stopMetrics()
	takeTurns()
	leanHeap()
	g, err := guest.Mount(opts)
	if err != nil {
		if opts.Events != nil {
			opts.Events.Close()
		}
		return err
	}
	if opts.Share != nil {
		report.backend, report.upstream, report.url = "server", opts.Share.Upstream(), f.remote.url
	}
	report.mounted(g, opts.Events)
	go func() {
		select {
		case <-g.Ready():
			logger.Info("mounted", "source", src, "mountpoint", point)
			reportReady(nil)
			daemon.SdNotify(false, daemon.SdNotifyReady)
		case <-ctx.Done():
		}
		<-ctx.Done()
		daemon.SdNotify(false, daemon.SdNotifyStopping)
	}()
	if err := g.Run(ctx); err != nil {
		return fmt.Errorf("mount %s: %w", point, err)
	}
	logger.Info("unmounted", "mountpoint", point)
	return nil
}

func (f *mountFlags) guestOptions(src, point string, logger *slog.Logger) (guest.Options, error) {
	o := guest.Options{Source: src, Mountpoint: point, CacheTimeout: f.cacheTimeout, Logger: logger}
	if f.cacheTimeout < 0 {
		return o, fmt.Errorf("--cache-timeout %s: give a time such as 30s or 1h", f.cacheTimeout)
	}
	mask, bad := notify.ParseMask(f.mask)
	if bad != "" || mask == 0 {
		return o, fmt.Errorf("--mask: unknown event %q; known are create, delete, modify, attrib, move, close_write, open, close_nowrite, access, default, all", bad)
	}
	o.Mask = mask
	if f.maxNodes < 0 {
		return o, fmt.Errorf("--max-nodes %d: give a number of files, or 0 for no bound", f.maxNodes)
	}
	o.MaxNodes = f.maxNodes
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
	switch f.passthrough {
	case "auto":
		o.Passthrough, o.PassthroughMin = true, f.passthroughMin
	case "off":
	default:
		return o, fmt.Errorf("--passthrough %q: give auto or off", f.passthrough)
	}
	uring, known := map[string]fusedev.IOURing{"auto": fusedev.IOURingAuto, "on": fusedev.IOURingOn, "off": fusedev.IOURingOff}[f.ioURing]
	if !known {
		return o, fmt.Errorf("--io-uring %q: give auto, on or off", f.ioURing)
	}
	fsname := f.fsname
	if fsname == "" {
		fsname = src
	}
	o.Device = fusedev.Options{
		FSName: fsname, Subtype: "heraldfs", AllowOther: f.allowOther, DefaultPermissions: f.defaultPermissions,
		ReadOnly: f.readOnly, Flags: f.opts.Flags, Suid: f.opts.Suid, Dev: f.opts.Dev, ExtraData: f.opts.Data,
		Keeper: true, AutoUnmount: f.autoUnmount, IOURing: uring,
	}
	if f.noOpen && (os.Geteuid() != 0 || !f.defaultPermissions || f.notify == "off") {
		return o, errors.New("--no-open needs root, --default-permissions and --notify=on")
	}
	switch f.notify {
	case "off", "false", "no", "0":
		return o, nil
	case "on", "true", "yes", "1":
	default:
		return o, fmt.Errorf("--notify %q: give on or off", f.notify)
	}
	if strings.HasPrefix(point+"/", src+"/") {
		// Watching a tree that contains the mount itself is fine: the watcher passes
		// over it, and the file system does not descend into it.
		logger.Debug("the mount point is inside of SOURCE", "mountpoint", point)
	}
	if f.remote.url != "" {
		if f.noOpen {
			return o, errors.New("--no-open does not go with --events: a share has to be asked at each open")
		}
		share, err := f.remote.share(mask, logger)
		o.Share = share
		return o, err
	}
	if err := f.remote.unused(f.set); err != nil {
		return o, err
	}
	switch f.watcher {
	case watcher.Auto, watcher.Fanotify, watcher.Inotify:
	default:
		return o, fmt.Errorf("--watcher %q: give auto, fanotify or inotify", f.watcher)
	}
	ledger := echo.New(echo.Options{})
	w, err := watcher.Open(watcher.Options{
		Root: src, Backend: f.watcher, Mask: mask | cohereMask, DropPid: os.Getpid(), Ledger: ledger, Logger: logger,
		LimitedQueue: f.limitedQueue,
	})
	if err != nil {
		return o, fmt.Errorf("watch %s: %w (heraldfs doctor %s says what works here; --notify=off mounts without events)", src, err, src)
	}
	if f.noOpen && w.Marker != nil {
		w.Close()
		return o, fmt.Errorf("--no-open: %s has to be watched directory by directory, and then not every file may be cached", src)
	}
	o.NoOpen = f.noOpen
	o.Events, o.Marker, o.Bounded = w, w.Marker, f.limitedQueue || w.Backend == watcher.Inotify
	if !w.HasPid {
		o.Ledger = ledger
	}
	if w.Backend == watcher.Fanotify {
		o.Unheard = w.Unheard
	}
	return o, nil
}

// cohereMask is what caches need to hear of even if nobody wants it delivered.
const cohereMask = notify.DefaultMask

func checkSource(source string) (string, error) {
	abs, err := filepath.Abs(source)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", fmt.Errorf("source %s: %w; give a directory that exists", source, errors.Unwrap(err))
	}
	st, err := os.Stat(real)
	switch {
	case err != nil:
		return "", fmt.Errorf("source: %w", err)
	case !st.IsDir():
		return "", fmt.Errorf("source %s: not a directory; heraldfs shares directories", source)
	}
	return real, nil
}

// checkFree refuses to mount the same thing twice, one over the other: that is nearly always a
// start script that ran again.
func checkFree(src, point string) error {
	m, err := findMount(point)
	if err != nil || m.Source != src {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(point, &st); err != nil {
		return nil // dead: it will be replaced
	}
	return fmt.Errorf("mount point %s: %s is mounted there already; `heraldfs umount %s` takes it off", point, src, point)
}

// checkMountpoint tells early what a mount would fail with. A dead mount is none of it:
// it would be replaced.
func checkMountpoint(point string) error {
	switch st, err := os.Stat(point); {
	case fusedev.Dead(err):
		return nil
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("mount point %s does not exist (create it with mkdir)", point)
	case err != nil:
		return fmt.Errorf("mount point: %w", err)
	case !st.IsDir():
		return fmt.Errorf("mount point %s: not a directory", point)
	}
	return nil
}
