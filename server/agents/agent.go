package agents

import (
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/notify/replay"
	"github.com/heraldfs/heraldfs/protocol"
)

// batchLimit is how many calls are put off before they are sent all the same.
const batchLimit = 256

// agent is one agent's life, from its Attach on. Do, Later and Flush are the replayer's.
type agent struct {
	host  *Host
	link  *protocol.AgentLink
	ch    io.Closer
	tid   uint32
	name  string
	taken bool // guarded by host.mu

	// pending is put off, sent is on the way or was last.
	pending, sent []notify.Call
	last          uint64
	timer         *time.Timer
	results       chan *protocol.Results

	wmu   sync.Mutex // one message is written at a time
	ended bool       // guarded by wmu

	mu      sync.Mutex
	waiting bool // for the answer to expect
	expect  uint64
	reason  error         // set before done is closed
	done    chan struct{} // closed at the end
	pinging sync.WaitGroup
}

var _ replay.Agent = (*agent)(nil)

func newAgent(h *Host, link *protocol.AgentLink, ch io.Closer, tid uint32) *agent {
	a := &agent{host: h, link: link, ch: ch, tid: tid, name: link.Peer().Agent,
		results: make(chan *protocol.Results, 1), done: make(chan struct{}), timer: time.NewTimer(time.Hour)}
	a.timer.Stop()
	a.pinging.Go(a.ping)
	return a
}

func (a *agent) String() string { return fmt.Sprintf("%q, thread %d", a.name, a.tid) }

// Done implements replay.Agent.
func (a *agent) Done() <-chan struct{} { return a.done }

// Close implements replay.Agent: the channel is closed, and with it the agent is gone. It comes again, with
// nothing open.
func (a *agent) Close(reason error) {
	if reason != nil && a.write(&protocol.Error{Code: protocol.CodeInternal, Text: clip(reason.Error())}) != nil {
		return // it is gone already
	}
	_ = a.ch.Close()
}

// clip keeps a text within what a message may hold.
func clip(s string) string { return s[:min(len(s), protocol.MaxText)] }

// end says that the agent is gone, and returns when nothing more is written to it: the channel may have another agent
// by now, whose handshake must stand alone. It is called by the goroutine that reads.
func (a *agent) end(reason error) {
	a.reason = reason
	close(a.done)
	a.wmu.Lock() // whoever writes now is waited for; a write is bounded
	a.ended = true
	a.wmu.Unlock()
	a.pinging.Wait()
}

// ping keeps both sides sure that the other one is there.
func (a *agent) ping() {
	tick := time.NewTicker(a.host.opts.PingInterval)
	defer tick.Stop()
	for id := uint64(1); ; id++ {
		select {
		case <-tick.C:
			if a.write(&protocol.Ping{ID: id}) != nil {
				return
			}
		case <-a.done:
			return
		}
	}
}

func (a *agent) write(m protocol.Message) error {
	a.wmu.Lock()
	defer a.wmu.Unlock()
	if a.ended {
		return notify.ErrDetached
	}
	err := a.link.Write(m)
	if err != nil {
		_ = a.ch.Close()
	}
	return err
}

// deliver takes an answer; false if nobody waits for it.
func (a *agent) deliver(m *protocol.Results) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.waiting || m.ID != a.expect {
		return false
	}
	a.waiting = false
	a.results <- m // has room: one answer is waited for
	return true
}

// Later implements notify.Performer.
func (a *agent) Later(c *notify.Call) error {
	a.pending = append(a.pending, *c)
	if len(a.pending) < batchLimit {
		return nil
	}
	return a.Flush()
}

// Flush implements notify.Performer.
func (a *agent) Flush() error {
	if len(a.pending) == 0 {
		return nil
	}
	done, err := a.send()
	if err != nil && done >= 0 {
		err = &notify.EarlierError{Op: a.sent[done].Op, Err: err}
	}
	return err
}

// Do implements notify.Performer.
func (a *agent) Do(c *notify.Call) error {
	a.pending = append(a.pending, *c)
	done, err := a.send()
	if err != nil && done >= 0 && done < len(a.sent)-1 {
		err = &notify.EarlierError{Op: a.sent[done].Op, Err: err}
	}
	return err
}

// send has what is pending performed. After an error of one of the calls, done is its index; after any
// other error it is -1.
func (a *agent) send() (done int, err error) {
	a.sent, a.pending = a.pending, a.sent[:0]
	a.last++
	a.mu.Lock()
	a.waiting, a.expect = true, a.last
	a.mu.Unlock()
	if err := a.write(&protocol.Calls{ID: a.last, Calls: a.sent}); err != nil {
		return -1, fmt.Errorf("%w: %w", notify.ErrDetached, err)
	}
	a.timer.Reset(a.host.opts.CallTimeout)
	defer a.timer.Stop()
	select {
	case m := <-a.results:
		return a.judge(m)
	case <-a.done:
		return -1, fmt.Errorf("%w: %w", notify.ErrDetached, a.reason)
	case <-a.timer.C:
		_ = a.ch.Close()
		return -1, fmt.Errorf("%w: no answer in %v", notify.ErrDetached, a.host.opts.CallTimeout)
	}
}

// judge makes sense of an answer.
func (a *agent) judge(m *protocol.Results) (done int, err error) {
	done = int(m.Done)
	switch {
	case done == len(a.sent) && m.Errno == 0:
		return done, nil
	case done < len(a.sent) && m.Errno != 0:
		return done, unix.Errno(m.Errno)
	}
	_ = a.ch.Close()
	return -1, fmt.Errorf("%w: %d of %d calls done, error %d: %w", notify.ErrDetached, done, len(a.sent), m.Errno, protocol.ErrProtocol)
}
