package replay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/heraldfs/heraldfs/notify"
)

// Agent performs calls in the kernel of a guest.
type Agent interface {
	notify.Performer
	// Done is closed when the agent is gone: every call returns notify.ErrDetached from then on.
	Done() <-chan struct{}
	// Close ends it, and tells it why.
	Close(reason error)
	// String names it for the log.
	String() string
}

// Agents are those that one guest has had, one after the other.
type Agents interface {
	// Wait returns the next agent, each once, or ctx's error.
	Wait(ctx context.Context) (Agent, error)
}

// errGhosts says that Config.GhostLimit is reached.
var errGhosts = errors.New("the guest keeps too many nodes that stand for nothing")

// withAgents replays with one agent after the other. While there is none answers are cached for a
// short time only, and events wait, or are given up for a comparison.
//
// What an agent leaves undone the next one does. What the guest was given to cache for long stays with it until
// then: there is nobody to tell its kernel.
func (r *Replayer) withAgents(ctx context.Context) error {
	r.fs.mute.Store(true)
	r.fs.shared.Store(int64(r.cfg.AbsentCache))
	r.fs.lease(r.cfg.AbsentCache)
	r.q.leave(true)
	close(r.started)
	for {
		a, err := r.cfg.Agents.Wait(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("replay: wait for an agent: %w", err)
		}
		// Nobody shall have to wait for an answer to know that he is to end.
		stop := context.AfterFunc(ctx, func() { a.Close(nil) })
		err = r.attach(a)
		if err == nil {
			r.log.Info("an agent replays", slog.String("agent", a.String()))
			err = r.with(a)
		}
		r.detach()
		stop()
		a.Close(err)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		r.log.Warn("no agent replays: short cache times from now on", slog.String("agent", a.String()), slog.Any("reason", err))
	}
}

// attach finds out whether the agent reaches our mount, and by which thread.
func (r *Replayer) attach(a Agent) error {
	r.detached = false
	r.fs.learn.Store(true)
	defer r.fs.learn.Store(false)
	if err := r.dirs.start(a); err != nil {
		return err
	}
	if err := r.dirs.perform(notify.Call{Op: notify.CallStat, Dir: r.dirs.staging}); err != nil {
		return fmt.Errorf("the agent does not reach this mount: %w", err)
	}
	if r.fs.tid.Load() == 0 {
		return errors.New("the agent is not in the pid namespace in which the mount was made")
	}
	r.fs.lease(0)
	r.q.leave(false)
	r.recover()
	r.allowSync()
	return nil
}

// recover begins the comparison that makes up for events that were given up.
func (r *Replayer) recover() {
	if since, lost := r.q.recover(); lost {
		r.view.quiet(false)
		r.recon.overflow(r, &notify.Event{Op: notify.OpOverflow, Time: since})
		// The source may have nothing more to tell for long.
		r.q.put(nil, nil, true)
	}
}

// detach takes back what attach did.
func (r *Replayer) detach() {
	r.fs.sync.Store(nil)
	r.fs.lease(r.cfg.AbsentCache)
	r.fs.tid.Store(0)
	r.q.leave(true)
	r.opens.forget()
	r.dirs.forget()
}

// with replays with an agent until it is gone, which is an error, or the queue is closed.
func (r *Replayer) with(a Agent) error {
	var watch sync.WaitGroup
	defer watch.Wait()
	ended := make(chan struct{})
	defer close(ended)
	watch.Go(func() {
		select {
		case <-a.Done():
			// At once, not when the next event comes.
			r.fs.lease(r.cfg.AbsentCache)
			r.q.poke()
		case <-ended:
		}
	})
	var spare []notify.Event
	for {
		t, ok := r.q.take(spare, r.patience())
		if !ok {
			return nil
		}
		select {
		case <-a.Done():
			tell(t.waiters, notify.ErrDetached)
			r.q.putBack(t.events)
			return notify.ErrDetached
		default:
		}
		r.recover()
		if err := r.batch(&t, nil); err != nil {
			return err
		}
		if r.view.ghosts() > r.cfg.GhostLimit {
			return errGhosts
		}
		clear(t.events)
		spare = t.events
	}
}

// putBack keeps the events from the i-th on for the next agent.
func (r *Replayer) putBack(t *taken, i int) {
	rest := t.events[i:]
	kept := rest[:0]
	for _, ev := range rest {
		if ev.Op != 0 {
			kept = append(kept, ev)
		}
	}
	r.q.putBack(kept)
}
