package stream

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heraldfs/heraldfs/protocol"
)

const (
	// batchEvents and batchBytes bound one Events message.
	batchEvents = 512
	batchBytes  = 256 << 10
	// quietSpan is how many unwanted sequences pass before an empty range is sent for them, so
	// that a subscriber of little can still resume.
	quietSpan = 1 << 14
)

// session is one subscriber of a stream.
type session struct {
	st      *Stream
	conn    *protocol.Conn
	filter  *filter
	compact protocol.Compaction
	window  int

	wake   chan struct{} // something to send, or room to
	quiet  atomic.Bool   // send an empty range, too
	behind chan struct{} // what is not read is about to be dropped
	at     atomic.Uint64 // cursor, for Publish, which must not wait for mu

	mu      sync.Mutex
	cursor  uint64   // the next sequence to read from the journal; at mirrors it
	sent    uint64   // everything up to here was covered
	unacked []uint64 // the ends of ranges on the way
	backlog folder
	// pending is a gap that is sent before anything else.
	pending *protocol.Gap
	// counted is what of the backlog the stream's budget has been told of.
	counted int
	scratch []*entry
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run serves the subscriber until the connection ends, or ctx.
func (s *session) run(ctx context.Context, ping time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { cancel(s.listen(ctx, &wg)) })
	wg.Go(func() {
		// A write that is stuck ends only with the connection.
		<-ctx.Done()
		s.conn.Refuse(goodbye(context.Cause(ctx)))
	})
	if s.compact != protocol.CompactNever {
		wg.Go(func() { s.keepUp(ctx) })
	}
	cancel(s.send(ctx, ping))
	wg.Wait()
	return context.Cause(ctx)
}

// listen takes what the subscriber says.
func (s *session) listen(ctx context.Context, wg *sync.WaitGroup) error {
	slots := make(chan struct{}, maxBarriers)
	for {
		m, err := s.conn.Read()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *protocol.Ack:
			s.acked(m.Seq)
		case *protocol.Ping:
			if !m.Sync || !s.conn.Shares(protocol.CapBarrier) {
				continue // answered
			}
			select {
			case slots <- struct{}{}:
			default:
				return fmt.Errorf("more than %d barriers: %w", maxBarriers, protocol.ErrProtocol)
			}
			wg.Go(func() {
				defer func() { <-slots }()
				s.barrier(ctx, m.ID)
			})
		}
	}
}

// maxBarriers bounds the barriers that a subscriber may wait for at a time.
const maxBarriers = 4

// barrier answers a Ping.Sync. If it fails the subscriber hears nothing; the end of its
// connection is near then.
func (s *session) barrier(ctx context.Context, id uint64) {
	if wait := s.st.opts.Barrier; wait != nil {
		if err := wait(ctx); err != nil {
			s.st.log.Debug("barrier", "err", err)
			return
		}
	}
	_, head := s.st.journal.bounds()
	if err := s.conn.Write(&protocol.Pong{ID: id, Seq: head}); err == nil {
		// What was filtered is not sent by itself; the subscriber waits for the number.
		s.quiet.Store(true)
		nudge(s.wake)
	}
}

func (s *session) acked(seq uint64) {
	s.mu.Lock()
	n := 0
	for n < len(s.unacked) && s.unacked[n] <= seq {
		n++
	}
	s.unacked = append(s.unacked[:0], s.unacked[n:]...)
	s.mu.Unlock()
	nudge(s.wake)
}

// send writes until ctx ends.
func (s *session) send(ctx context.Context, every time.Duration) error {
	ping := time.NewTicker(every)
	defer ping.Stop()
	var pings uint64
	for {
		quiet := s.quiet.Swap(false)
		m := s.next(quiet)
		if m == nil {
			if quiet {
				s.quiet.Store(true) // there may have been no room
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-s.wake:
				continue
			case <-ping.C:
				pings++
				if err := s.conn.Write(&protocol.Ping{ID: pings}); err != nil {
					return err
				}
				if m = s.next(true); m == nil {
					continue
				}
			}
		}
		if err := s.conn.Write(m); err != nil {
			return err
		}
	}
}

// keepUp folds what the subscriber has not read whenever the journal needs its place.
func (s *session) keepUp(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.behind:
			s.absorb()
		}
	}
}

// next returns the next message, nil if there is nothing to send or no room in the
// window. quiet asks for an empty range if there is nothing better.
func (s *session) next(quiet bool) protocol.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.unacked) >= s.window {
		return nil
	}
	if s.pending == nil && s.backlog.peek() == nil {
		s.readLocked()
	}
	m := s.takeLocked(quiet)
	s.countLocked()
	return m
}

// takeLocked makes a message of what is pending or in the backlog.
func (s *session) takeLocked(quiet bool) protocol.Message {
	if g := s.pending; g != nil {
		s.pending = nil
		return s.gapSentLocked(g)
	}
	e := s.backlog.peek()
	if e != nil && e.lost != 0 {
		s.backlog.pop()
		return s.gapSentLocked(&protocol.Gap{First: s.sent + 1, Last: e.seq, Scope: e.scope, Reason: e.lost})
	}
	m := &protocol.Events{First: s.sent + 1, Raw: [][]byte{}}
	for bytes := 0; e != nil && e.lost == 0 && len(m.Raw) < batchEvents && bytes < batchBytes; e = s.backlog.peek() {
		m.Raw = append(m.Raw, e.raw)
		bytes += len(e.raw)
		s.backlog.pop()
	}
	m.Last = s.cursor - 1
	if e != nil {
		m.Last = e.seq - 1
	}
	if len(m.Raw) == 0 && (m.Last < s.sent+quietSpan && !quiet || m.Last <= s.sent) {
		return nil
	}
	s.coverLocked(m.Last)
	return m
}

func (s *session) gapSentLocked(g *protocol.Gap) protocol.Message {
	s.st.counts.gap(g)
	s.coverLocked(g.Last)
	return g
}

func (s *session) coverLocked(last uint64) {
	s.sent = last
	s.unacked = append(s.unacked, last)
}

// readLocked moves wanted entries from the journal to the empty backlog: about a batch of
// them, or until quietSpan unwanted ones were passed.
func (s *session) readLocked() {
	fold := s.backlog.fold
	s.backlog.fold = s.compact == protocol.CompactAlways
	for s.backlog.live < batchEvents && s.cursor-s.sent <= quietSpan {
		if !s.readSomeLocked(batchEvents) {
			break
		}
		if s.pending != nil {
			break
		}
	}
	s.backlog.fold = fold
}

// readSomeLocked reads up to n entries; false if there are none. What is no longer in the journal
// becomes a pending gap.
func (s *session) readSomeLocked(n int) bool {
	list, first := s.st.journal.read(s.scratch[:0], s.cursor, n)
	if first > s.cursor {
		s.gapLocked(first-1, "", protocol.GapJournal)
		s.moveLocked(first)
		return true
	}
	for i, e := range list {
		if s.filter.wants(e) {
			s.backlog.add(e)
		}
		list[i] = nil
	}
	if n := uint64(len(list)); n > 0 {
		s.moveLocked(s.cursor + n)
	}
	s.scratch = list
	return len(list) > 0
}

func (s *session) moveLocked(seq uint64) {
	s.cursor = seq
	s.at.Store(seq)
}

// gapLocked replaces the backlog by a gap up to last.
func (s *session) gapLocked(last uint64, scope string, why protocol.Reason) {
	var all span
	all.add(scope)
	if s.pending != nil {
		all.add(s.pending.Scope)
	}
	if s.backlog.scope.any {
		all.add(s.backlog.scope.dir)
	}
	s.backlog.reset()
	s.pending = &protocol.Gap{First: s.sent + 1, Last: last, Scope: all.dir, Reason: why}
}

// absorb reads all that the journal has, folding, so that nothing of it is needed any more.
func (s *session) absorb() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.backlog.fold = true
	for s.readSomeLocked(4 * batchEvents) {
		s.backlog.tidy()
		s.countLocked()
		if s.backlog.live > s.st.opts.BacklogEvents || s.backlog.bytes > s.st.opts.BacklogBytes || s.st.overBudget() {
			s.st.log.Info("subscriber gapped", "from", s.sent+1, "to", s.cursor-1)
			s.gapLocked(s.cursor-1, s.backlog.scope.dir, protocol.GapBacklog)
			s.countLocked()
		}
	}
	nudge(s.wake)
}

// countLocked keeps the stream's budget.
func (s *session) countLocked() {
	now := s.backlog.bytes
	s.st.backlogs.Add(int64(now - s.counted))
	s.counted = now
}
