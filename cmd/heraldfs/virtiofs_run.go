//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/loglimit"
	"github.com/heraldfs/heraldfs/internal/sandbox"
	"github.com/heraldfs/heraldfs/server/agents"
	"github.com/heraldfs/heraldfs/server/passthrough"
	"github.com/heraldfs/heraldfs/server/virtiofs"
)

// session closes the file system when the guest's mount has ended.
type session struct {
	*passthrough.FS
	log *slog.Logger
}

func (s session) OnUnmount() {
	if err := s.FS.Close(); err != nil {
		s.log.Error("closing the file system", "err", err)
	}
}

// run checks what can be checked, and then serves, or waits for a confined process that does.
func (f *virtiofsFlags) run(ctx context.Context, dir string) error {
	child, err := sandbox.Join()
	if err != nil {
		return err
	}
	if f.socket == "" && f.fd < 0 {
		return fmt.Errorf("--socket is missing: give the path where the virtual machine monitor will connect")
	}
	src, err := checkSource(dir)
	if err != nil {
		return err
	}
	logger, closeLog, err := f.log.open(false)
	if err != nil {
		return err
	}
	defer closeLog()
	// A guest shall not fill the host's disk with what it makes us say.
	logger = slog.New(loglimit.New(logger.Handler(), loglimit.Options{}))
	opts, err := f.options(logger)
	if err != nil {
		return err
	}
	if err := f.checkAgent(); err != nil {
		return err
	}
	if child != nil {
		return f.serveInherited(ctx, child, f.box(child.Mode, src, logger), opts)
	}
	mode, why, err := f.confinement()
	if err != nil {
		return err
	}
	systemd, err := dialManager()
	if err != nil {
		return err
	}
	defer systemd.close()
	l, err := f.listen()
	if err != nil {
		return err
	}
	defer l.Close()
	m, err := f.metrics.listen(ctx)
	if err != nil {
		return err
	}
	if m != nil {
		defer m.Close()
	}
	if mode != sandbox.None {
		err = f.supervise(mode, why, l, m, systemd, logger)
		if mode != sandbox.Namespace || !errors.Is(err, sandbox.ErrStart) {
			return err
		}
		if f.sandbox != "" {
			return fmt.Errorf("--sandbox=namespace: %w: give --sandbox=chroot or --sandbox=landlock, or leave it out", err)
		}
		// As in a container that forbids them, or on an initramfs.
		why = err.Error()
		if mode, _, err = sandbox.Resolve(sandbox.Landlock); err == nil {
			return f.supervise(mode, why, l, m, systemd, logger)
		}
		why += "; " + err.Error()
	}
	if f.sandbox == "" {
		logger.Warn("the process is not confined", "why", why)
	}
	agent, err := f.agent.open(ctx, nil)
	if err != nil {
		return err
	}
	return f.serve(ctx, l, m, agent, f.box(sandbox.None, src, logger), opts, systemd.ready, systemd.stopping)
}

// confinement resolves --sandbox.
func (f *virtiofsFlags) confinement() (sandbox.Mode, string, error) {
	mode, err := sandbox.Parse(f.sandbox)
	why := ""
	if err == nil {
		mode, why, err = sandbox.Resolve(mode)
	}
	if err != nil {
		return mode, "", fmt.Errorf("--sandbox %w", err)
	}
	return mode, why, nil
}

// listen makes the socket, or takes the one that we were started with.
func (f *virtiofsFlags) listen() (virtiofs.Listener, error) {
	if f.fd >= 0 {
		unix.CloseOnExec(f.fd)
		return asListener(os.NewFile(uintptr(f.fd), "--fd"))
	}
	socket, err := filepath.Abs(f.socket)
	if err != nil {
		return nil, err
	}
	l, err := virtiofs.ListenUnix(socket)
	if err != nil {
		return nil, err
	}
	if f.socketGroup == "" {
		return l, nil
	}
	if err := giveToGroup(socket, f.socketGroup); err != nil {
		l.Close()
		return nil, fmt.Errorf("--socket-group: %w", err)
	}
	return l, nil
}

func giveToGroup(path, group string) error {
	g, err := user.LookupGroup(group)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return err
	}
	return errors.Join(os.Lchown(path, -1, gid), os.Chmod(path, 0o660))
}

// asListener makes a listener of file, which is closed.
func asListener(file *os.File) (*net.UnixListener, error) {
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("%s is no listening socket: %w", file.Name(), err)
	}
	ul, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("%s is a socket, but not of type unix", file.Name())
	}
	return ul, nil
}

// supervise runs this command again, to be confined, with the listeners l and, unless it is nil, m, and
// ends as that ends.
func (f *virtiofsFlags) supervise(mode sandbox.Mode, why string, l, m net.Listener, systemd *manager, log *slog.Logger) error {
	if why != "" {
		log.Info("no namespaces", "why", why)
	}
	var files []*os.File
	for _, ln := range []net.Listener{l, m} {
		fl, ok := ln.(interface{ File() (*os.File, error) })
		if !ok {
			continue
		}
		file, err := fl.File()
		if err != nil {
			return err
		}
		defer file.Close()
		files = append(files, file)
	}
	if f.agent.listen != "" {
		agent, end, err := f.agent.file(context.Background())
		if err != nil {
			return err
		}
		defer end()
		defer agent.Close()
		files = append(files, agent) // the last
	}
	told := func(err error) {
		if err != nil {
			log.Warn("the service manager was not told", "err", err)
		}
	}
	status, err := sandbox.Supervise(mode, files, func() { told(systemd.ready()) }, func() { told(systemd.stopping()) })
	if err == nil && status != 0 {
		// It has said why.
		return &exitError{code: status}
	}
	return err
}

// serveInherited is the confined process.
func (f *virtiofsFlags) serveInherited(ctx context.Context, child *sandbox.Child, box sandbox.Options, opts passthrough.Options) error {
	l, err := asListener(child.Files[0])
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	more := child.Files[1:]
	var agent *agentChannel
	if f.agent.listen != "" && len(more) > 0 {
		if agent, err = f.agent.open(ctx, more[len(more)-1]); err != nil {
			return err
		}
		more = more[:len(more)-1]
	}
	var m net.Listener
	if len(more) > 0 {
		m, err = net.FileListener(more[0])
		if err != nil {
			return fmt.Errorf("--metrics: %w", err)
		}
		more[0].Close()
		if ul, ok := m.(*net.UnixListener); ok {
			ul.SetUnlinkOnClose(false)
		}
	}
	err = f.serve(ctx, l, m, agent, box, opts, child.Ready, func() error { return nil })
	if errors.Is(err, sandbox.ErrEnter) && child.Mode == sandbox.Namespace {
		// The parent decides what this means, and says so.
		return errors.Join(child.Fail(err), &exitError{code: 1})
	}
	return err
}

// serve confines this process and serves until it is told to end. m is for metrics, nil for none, and so is agent.
func (f *virtiofsFlags) serve(ctx context.Context, l virtiofs.Listener, m net.Listener, agent *agentChannel, box sandbox.Options, opts passthrough.Options, ready, stopping func() error) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer stop()
	report := &virtiofsReport{started: time.Now(), src: box.Dir, socket: l.Addr().String()}
	defer answerMetrics(ctx, m, report.status, box.Logger)()
	vo := virtiofs.Options{Tag: f.tag, Queues: f.queues, Logger: box.Logger}
	report.follow(&vo)
	if told := vo.OnDisconnect; f.once {
		vo.OnDisconnect = func(err error) {
			told(err)
			stop()
		}
	}
	s, err := virtiofs.New(l, vo)
	if err != nil {
		return err
	}
	defer s.Close()
	// Here what is outside of DIR, or on the network, is opened.
	dir, err := sandbox.Enter(box)
	if err != nil {
		return err
	}
	opts.Landlocked = box.Mode != sandbox.None
	newFS := func(g virtiofs.Guest) (fuse.RawFileSystem, *fuse.MountOptions, error) {
		report.broken.Store(nil) // a reset has healed the device
		fs, err := passthrough.New(dir, f.forGuest(opts, g))
		if err != nil {
			return nil, nil, err
		}
		mount := fs.MountOptions()
		// A stock virtiofs guest cannot interrupt a request, so that a process that waits for a
		// lock could not be killed. Without remote locks they work within the guest.
		mount.EnableLocks = false
		return session{fs, box.Logger}, &mount, nil
	}
	var share *agents.Share
	if agent != nil {
		if share, err = f.share(dir, agent, box); err != nil {
			return err
		}
		newFS = func(g virtiofs.Guest) (fuse.RawFileSystem, *fuse.MountOptions, error) {
			report.broken.Store(nil)
			fs, mount, err := share.NewFS(f.forGuest(opts, g))
			if err == nil {
				mount.EnableLocks = false // as above
			}
			return fs, mount, err
		}
	}
	if err := sandbox.Seal(box, dir); err != nil {
		return fmt.Errorf("--sandbox: %w", err)
	}
	// What would fail in the guest's mount shall fail here.
	probe, err := passthrough.New(dir, opts)
	if err != nil {
		return err
	}
	if err := probe.Close(); err != nil {
		return err
	}
	report.ready.Store(true)
	box.Logger.Info("waiting for a virtual machine monitor", "source", box.Dir, "socket", l.Addr(), "sandbox", string(box.Mode))
	if err := ready(); err != nil {
		return fmt.Errorf("tell that we are ready: %w", err)
	}
	err = serveShare(ctx, s, newFS, share)
	return errors.Join(err, stopping())
}

func (f *virtiofsFlags) box(mode sandbox.Mode, dir string, log *slog.Logger) sandbox.Options {
	return sandbox.Options{Mode: mode, Dir: dir, NoHandles: f.fileHandles == "never", Logger: log}
}

// What a node costs a guest's kernel in memory at the least (it is about 1100 bytes), and how many it may have before
// we count: FORGETs that are on their way.
const (
	nodeMemory = 1 << 10
	spareNodes = 1 << 16
)

// forGuest fits opts to the guest that mounts.
func (f *virtiofsFlags) forGuest(opts passthrough.Options, g virtiofs.Guest) passthrough.Options {
	opts.AnnounceSubmounts = f.announce == "on" && g.InitFlags&fuse.CAP_SUBMOUNTS != 0
	switch {
	case f.maxNodes > 0:
		opts.NodeLimit = func() int { return f.maxNodes }
	case f.maxNodes == 0:
		opts.NodeLimit = func() int { return int(g.Memory()/nodeMemory) + spareNodes }
	}
	return opts
}
