//go:build linux

package watcher

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/sys"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher/fanotify"
	"github.com/heraldfs/heraldfs/watcher/inotify"
)

// Verdict says whether one backend works.
type Verdict struct {
	Backend string
	Works   bool
	// Err is why not; errors.Is finds the errno.
	Err error
	// Advice is what can be done about Err, or empty.
	Advice string
}

// Report is what Probe found out. Chosen is what Open with Auto would take.
type Report struct {
	Root   string
	FSType string
	// Handles says what name_to_handle_at(2) gives on Root.
	Handles sys.HandleKind
	// SysAdmin and DacReadSearch are the effective capabilities that matter: the first for
	// fanotify, the second for opening by handle.
	SysAdmin, DacReadSearch bool
	Verdicts                []Verdict
	Chosen, Why             string
	// Err is set if Root could not be looked at.
	Err error
}

// Probe tries every backend on root, by really marking it, and leaves nothing behind.
func Probe(root string) Report {
	r := Report{Root: root}
	r.SysAdmin, r.DacReadSearch = capabilities()
	if r.Err = r.look(); r.Err != nil {
		return r
	}
	r.Verdicts = []Verdict{
		r.verdict(Fanotify, probeFanotify(root, false)),
		r.verdict(FanotifyInode, probeFanotify(root, true)),
		r.verdict(Inotify, probeInotify(root)),
	}
	w, err := open(Options{Root: root, Backend: Auto})
	if err != nil {
		r.Err = err
		return r
	}
	r.Chosen, r.Why = w.Backend, w.Why
	// Nothing runs yet, so nothing is waited for.
	r.Err = w.Close()
	return r
}

// look finds out about the file system of Root.
func (r *Report) look() error {
	abs, err := filepath.Abs(r.Root)
	if err == nil {
		r.Root, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	fd, err := unix.Open(r.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("probe %s: %w", r.Root, err)
	}
	defer unix.Close(fd)
	var h sys.Handle
	if r.Handles, _, err = sys.HandleOf(fd, &h); err != nil {
		return fmt.Errorf("probe %s: %w", r.Root, err)
	}
	mnt, _, err := sys.MountOf(fd)
	if err != nil {
		return fmt.Errorf("probe %s: %w", r.Root, err)
	}
	_, err = mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		if uint64(m.ID) == mnt {
			r.FSType = m.FSType
		}
		return true, r.FSType != ""
	})
	if err != nil {
		return fmt.Errorf("probe %s: %w", r.Root, err)
	}
	return nil
}

func (r *Report) verdict(backend string, err error) Verdict {
	v := Verdict{Backend: backend, Works: err == nil, Err: err}
	if err != nil {
		v.Advice = r.advice(backend, err)
	}
	return v
}

func (r *Report) advice(backend string, err error) string {
	switch {
	case errors.Is(err, unix.EPERM) && !r.SysAdmin:
		return "run as root, or grant CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH"
	case errors.Is(err, unix.EPERM):
		return "CAP_SYS_ADMIN counts in the initial user namespace only; run outside the container or user namespace"
	case errors.Is(err, unix.ENOSYS):
		return "this kernel has no fanotify; inotify will be used"
	case errors.Is(err, unix.EINVAL):
		return "this kernel is older than 5.17 or lacks a fanotify feature; inotify will be used"
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EOPNOTSUPP):
		return r.FSType + " refuses this sort of mark; the next backend will be used"
	case errors.Is(err, unix.EMFILE) && backend == Inotify:
		return "raise fs.inotify.max_user_instances"
	case errors.Is(err, unix.EMFILE):
		return "raise fs.fanotify.max_user_groups"
	case errors.Is(err, unix.ENOSPC):
		return "raise fs.inotify.max_user_watches"
	case errors.Is(err, unix.EACCES):
		return "inotify needs read permission on every directory"
	}
	return ""
}

// probeFanotify fails for a filesystem mark also if only a submount refuses it.
func probeFanotify(root string, inode bool) error {
	f, err := fanotify.Open(fanotify.Options{Root: root, InodeMarks: inode})
	if err != nil {
		return err
	}
	defer f.Close()
	if !inode && f.InodeMarks() {
		return f.Refused()
	}
	return nil
}

func probeInotify(root string) error {
	i, err := inotify.Open(inotify.Options{Root: root})
	if err != nil {
		return err
	}
	defer i.Close()
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", root, err)
	}
	defer unix.Close(fd)
	return i.Mark(notify.Object{Type: notify.TypeInode}, fd)
}

// capabilities reads the effective set; what cannot be read is taken as missing.
func capabilities() (sysAdmin, dacReadSearch bool) {
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return false, false
	}
	for _, line := range strings.Split(string(status), "\n") {
		hex, ok := strings.CutPrefix(line, "CapEff:")
		if !ok {
			continue
		}
		var set uint64
		if _, err := fmt.Sscanf(strings.TrimSpace(hex), "%x", &set); err != nil {
			return false, false
		}
		return set&(1<<unix.CAP_SYS_ADMIN) != 0, set&(1<<unix.CAP_DAC_READ_SEARCH) != 0
	}
	return false, false
}
