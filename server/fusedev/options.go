package fusedev

import (
	"bytes"
	"fmt"
	"log"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Options say how to mount and serve. The zero value works.
type Options struct {
	// FSName is the first field of /proc/mounts; "heraldfs" if empty.
	FSName string
	// Subtype makes the file system type "fuse.SUBTYPE"; "heraldfs" if
	// empty. A dead mount of this type on the mount point is cleaned up.
	Subtype string
	// AllowOther lets other users in; without root it needs user_allow_other
	// in /etc/fuse.conf.
	AllowOther bool
	// DefaultPermissions lets the kernel check modes and ACLs.
	DefaultPermissions bool
	// ReadOnly makes the visible mount read-only. As root the superblock
	// stays writable, for PrivateRoot.
	ReadOnly bool
	// Flags are MS_ flags of mount(2) besides MS_NOSUID|MS_NODEV, which
	// are set unless Suid or Dev says otherwise.
	Flags     uintptr
	Suid, Dev bool
	// ExtraData are further words for mount(2)'s data, or options for
	// fusermount.
	ExtraData []string
	// Fuse is what go-fuse negotiates. Of its fields those that concern
	// mounting are not used; MaxWrite is 1 MiB if zero.
	Fuse fuse.MountOptions
	// ReadAheadKB, if not zero, raises the mount's readahead above the
	// kernel's 128 KiB. Works as root only and is passed over otherwise.
	ReadAheadKB int
	// Keeper starts a second process that aborts the connection should this one be
	// killed. The program's main must begin with RunKeeper. Without a keeper, a process that
	// is killed while it sends a notification can leave a mount that hangs.
	Keeper bool
	// AutoUnmount has the keeper take the mount off the mount point as well. Without, accesses give ENOTCONN until
	// somebody mounts there again or unmounts.
	AutoUnmount bool
	// IOURing says whether requests come by FUSE over io_uring, which needs Linux 6.14 and the fuse module's
	// parameter enable_uring.
	IOURing IOURing
	// Debug logs each request and reply at slog's debug level.
	Debug bool
	// Logger gets what the connection has to tell; nil discards it.
	Logger *slog.Logger
	// MaxWorkers bounds the requests that are carried out beside the reader;
	// 32 if zero. Each can hold two buffers of MaxWrite bytes. Over io_uring, besides one or two for each CPU.
	MaxWorkers int
	// MaxLockWaiters bounds the SETLKW requests that wait; 1024 if zero.
	MaxLockWaiters int
	// SlowAfter is how often the watchdog looks: a request that has taken
	// between one and two of it no longer holds up others. 1 ms if zero.
	SlowAfter time.Duration
}

const (
	defaultName        = "heraldfs"
	defaultMaxWrite    = 1 << 20
	defaultWorkers     = 32
	defaultLockWaiters = 1024
	defaultSlowAfter   = time.Millisecond
)

func (o *Options) setDefaults() {
	if o.Subtype == "" {
		o.Subtype = defaultName
	}
	if o.FSName == "" {
		o.FSName = defaultName
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxWorkers <= 0 {
		o.MaxWorkers = defaultWorkers
	}
	if o.MaxLockWaiters <= 0 {
		o.MaxLockWaiters = defaultLockWaiters
	}
	if o.SlowAfter <= 0 {
		o.SlowAfter = defaultSlowAfter
	}
	if o.Fuse.MaxWrite <= 0 {
		o.Fuse.MaxWrite = defaultMaxWrite
	}
	o.Fuse.MaxWrite = min(o.Fuse.MaxWrite, maxPages()*os.Getpagesize())
	if o.Flags&unix.MS_RDONLY != 0 {
		o.ReadOnly = true
		o.Flags &^= unix.MS_RDONLY
	}
	if o.Debug {
		o.Fuse.Debug = true
	}
	if o.Fuse.Logger == nil {
		o.Fuse.Logger = log.New(fuseLog{o.Logger, o.Fuse.Debug}, "", 0)
	}
	if o.Fuse.PanicHandler == nil {
		logger := o.Logger
		o.Fuse.PanicHandler = func(v any) fuse.Status {
			logger.Error("panic in a request handler", "panic", v, "stack", string(debug.Stack()))
			return fuse.EIO
		}
	}
}

// mountFlags are the MS_ flags without MS_RDONLY.
func (o *Options) mountFlags() uintptr {
	flags := o.Flags | unix.MS_NOSUID | unix.MS_NODEV
	if o.Suid {
		flags &^= unix.MS_NOSUID
	}
	if o.Dev {
		flags &^= unix.MS_NODEV
	}
	return flags
}

// maxPages is the limit of the kernel on pages in a request; 256 since 4.20, a sysctl
// since 6.13.
func maxPages() int {
	const builtIn = 256
	b, err := os.ReadFile("/proc/sys/fs/fuse/max_pages_limit")
	if err != nil {
		return builtIn
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || n <= 0 {
		return builtIn
	}
	return n
}

// data are the words that mount(2) and fusermount have in common.
func (o *Options) data() []string {
	words := []string{fmt.Sprintf("max_read=%d", o.Fuse.MaxWrite)}
	if o.AllowOther {
		words = append(words, "allow_other")
	}
	if o.DefaultPermissions {
		words = append(words, "default_permissions")
	}
	return append(words, o.ExtraData...)
}

// fuseLog carries go-fuse's log lines over to slog.
type fuseLog struct {
	to    *slog.Logger
	debug bool
}

func (l fuseLog) Write(p []byte) (int, error) {
	line := string(bytes.TrimRight(p, "\n"))
	// A kernel probes for opcodes and remembers ENOSYS: that is no trouble.
	if l.debug || strings.HasPrefix(line, "Unimplemented opcode") {
		l.to.Debug("fuse", "text", line)
	} else {
		l.to.Warn("fuse", "text", line)
	}
	return len(p), nil
}
