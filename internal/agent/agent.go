// Package agent is the part of heraldfs that runs in a virtual machine: it makes, on a mount of
// the guest, the system calls that the host asks for, so that the guest's own kernel tells its watchers
// what has changed on the host.
//
// # Concepts
//
// One thread makes all calls; the file system on the host answers them from the state before the change,
// and knows them by that thread's id. Calls come over a channel: a virtio-serial port
// (OpenPort), vsock or TCP.
//
// The calls are made on a clone of the mount that belongs to nobody's namespace, so that it is
// never busy because of us, what is mounted below it is not in the way, and a read-only mount
// hears events as well. The clone is given up when the mount leaves the namespace.
//
// A submount is a file system below the host's directory, which the kernel mounts when it is
// entered. Each place where that happens has a superblock of its own, whose watchers hear nothing of the
// others. So it is entered where guest processes do, on the mount itself, and what is there then is cloned.
//
// # Trust
//
// The host is believed no length and no name: calls reach nothing outside of the mount
// (package perform), frames are capped, and a host that falls silent is left.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify/perform"
	"github.com/heraldfs/heraldfs/protocol"
)

// farewell is how long the last word to the host may take.
const farewell = time.Second

// slotLimit bounds the descriptors that the host can have opened.
const slotLimit = 4096

// Options configures Run. Mountpoint and Open are required.
type Options struct {
	// Mountpoint is where the host's share is, or will be, mounted.
	Mountpoint string
	// Open makes a channel to the host.
	Open func(ctx context.Context) (protocol.Channel, error)
	// Token, if set, must be known to the host.
	Token []byte
	// Name is what the host is told of this program.
	Name string
	// MinBackoff and MaxBackoff bound the pause before another attempt; it doubles. 0
	// is 50 milliseconds and one second.
	MinBackoff, MaxBackoff time.Duration
	// IdleTimeout is how long the host may be silent; 0 is 20 seconds. It pings every five.
	IdleTimeout time.Duration
	// Attached, if not nil, is called each time that the host has taken us.
	Attached func()
	// Logger is where to log; nil discards.
	Logger *slog.Logger
}

// errMount ends what was done with a mount that is no longer there.
var errMount = errors.New("the mount has gone, or is another one now")

// errSubmount starts anew, because a mount below the mount has gone: the host has directories of it open.
var errSubmount = errors.New("a submount has gone")

// errHail asks for a new handshake.
var errHail = errors.New("another host program is there")

// Run serves the host until ctx ends, which is no error.
func Run(ctx context.Context, o Options) error {
	if o.MinBackoff <= 0 {
		o.MinBackoff = 50 * time.Millisecond
	}
	if o.MaxBackoff < o.MinBackoff {
		o.MaxBackoff = max(time.Second, o.MinBackoff)
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = 20 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	watch, err := newMountWatch(o.Mountpoint)
	if err != nil {
		return err
	}
	defer watch.close()
	for ctx.Err() == nil {
		m, err := watch.wait(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		root, err := m.open()
		if err != nil {
			o.Logger.Warn("the mount cannot be used", "mountpoint", o.Mountpoint, "err", err)
			sleep(ctx, o.MaxBackoff)
			continue
		}
		err = o.onMount(ctx, root, watch, m)
		unix.Close(root)
		if err != nil && ctx.Err() == nil {
			o.Logger.Info("waiting for the mount", "mountpoint", o.Mountpoint, "reason", err)
		}
	}
	return nil
}

// onMount serves the host, over one channel after the other, while the mount is there.
func (o *Options) onMount(ctx context.Context, root int, watch *mountWatch, m mountID) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel(nil)
	watching.Go(func() {
		if watch.gone(ctx, m) {
			cancel(errMount)
		}
	})
	pause := backoff{min: o.MinBackoff, max: o.MaxBackoff}
	last := ""
	for ctx.Err() == nil {
		attached, err := o.channel(ctx, root, watch, m)
		if ctx.Err() != nil {
			break
		}
		if attached {
			pause.reset()
		}
		if text := fmt.Sprint(err); text != last {
			o.Logger.Info("no connection to the host", "reason", err)
			last = text
		}
		if errors.Is(err, errHail) || errors.Is(err, errSubmount) {
			continue
		}
		sleep(ctx, pause.take())
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// backoff is how long to wait before another attempt: min at first, and twice as long each time up to max.
type backoff struct{ min, max, next time.Duration }

func (b *backoff) take() time.Duration {
	d := max(b.next, b.min)
	b.next = min(2*d, b.max)
	return d
}

func (b *backoff) reset() { b.next = 0 }

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// channel serves the host until the channel ends.
func (o *Options) channel(ctx context.Context, root int, watch *mountWatch, mount mountID) (attached bool, err error) {
	ch, err := o.Open(ctx)
	if err != nil {
		return false, err
	}
	defer ch.Close()
	link, err := protocol.OpenAgent(ctx, ch, protocol.Options{Agent: o.Name, Token: o.Token, IdleTimeout: o.IdleTimeout})
	if err != nil {
		return false, err
	}
	writing := make(chan struct{}, 1) // holds one while somebody writes
	write := func(m protocol.Message) error {
		writing <- struct{}{}
		defer func() { <-writing }()
		return link.Write(m)
	}
	defer context.AfterFunc(ctx, func() {
		// The other end of a virtio-serial port does not notice that ours is closed, and would go on promising long cache times.
		// A host that takes nothing is not waited for.
		late := time.AfterFunc(farewell, func() { ch.Close() })
		defer late.Stop()
		if err := write(&protocol.Error{Text: "the agent ends"}); err != nil {
			o.Logger.Debug("the host was not told", "err", err)
		}
		ch.Close()
	})()
	// The goroutine that reads makes the calls: nothing is handed over on the way.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := write(&protocol.Attach{Tid: uint32(unix.Gettid())}); err != nil {
		return false, err
	}
	o.Logger.Info("connected", "host", link.Peer().Agent)
	if o.Attached != nil {
		o.Attached()
	}
	local := perform.NewLocal(root, slotLimit)
	defer local.Close()
	subs := newSubmounts(watch, mount, root)
	defer subs.close()
	local.OnSubmount(subs.enter)
	defer subs.watch(ctx, func() { ch.Close() })()
	for {
		m, err := link.Read()
		if err != nil {
			if subs.lost() {
				err = errSubmount
			}
			return true, err
		}
		switch m := m.(type) {
		case *protocol.Calls:
			err = write(o.perform(local, m))
		case *protocol.Ping:
			err = write(&protocol.Pong{ID: m.ID})
		case *protocol.Hail:
			err = errHail
		default:
			err = fmt.Errorf("message of type %d from the host: %w", m.Type(), protocol.ErrProtocol)
		}
		if err != nil {
			return true, err
		}
	}
}

// perform makes calls up to the first that fails.
func (o *Options) perform(local *perform.Local, m *protocol.Calls) *protocol.Results {
	r := &protocol.Results{ID: m.ID}
	for i := range m.Calls {
		if err := local.Do(&m.Calls[i]); err != nil {
			o.Logger.Debug("call failed", "call", m.Calls[i].Op.String(), "name", m.Calls[i].Name, "err", err)
			errno := unix.EINVAL
			errors.As(err, &errno)
			r.Errno = uint32(errno)
			return r
		}
		r.Done++
	}
	return r
}
