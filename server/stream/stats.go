package stream

import (
	"sync/atomic"

	"github.com/heraldfs/heraldfs/protocol"
)

// counts are a stream's counters.
type counts struct {
	events        [protocol.OpAccess + 1]atomic.Uint64
	losses, gaps  [protocol.GapRescan + 1]atomic.Uint64
	subscriptions atomic.Uint64
	resumes       atomic.Uint64
	diskFailed    atomic.Bool
}

func (c *counts) published(r *Record) {
	switch {
	case r.Lost == 0:
		c.events[r.Op].Add(1) // a known one
	case int(r.Lost) < len(c.losses):
		c.losses[r.Lost].Add(1)
	}
}

// gap counts one that is sent.
func (c *counts) gap(g *protocol.Gap) {
	if int(g.Reason) < len(c.gaps) {
		c.gaps[g.Reason].Add(1)
	}
}

// Subscriber is what is known of a session.
type Subscriber struct {
	Peer  string
	Agent string
	// Behind is how many records were not yet read on its behalf.
	Behind uint64
}

// Stats are a stream's numbers at one moment. Counters are since Open.
type Stats struct {
	First, Head  uint64 // what the journal holds
	JournalBytes int
	// DiskFailed says that the journal could not be written to its directory any more.
	DiskFailed   bool
	BacklogBytes int64
	Subscribers  []Subscriber
	// Events were published, by operation; Losses are the records of losses, and Gaps what
	// subscribers were told of, by reason.
	Events map[protocol.Op]uint64
	Losses map[protocol.Reason]uint64
	Gaps   map[protocol.Reason]uint64
	// Subscriptions were accepted; Resumes of them named a position.
	Subscriptions, Resumes uint64
}

// Stats returns the numbers of now.
func (st *Stream) Stats() Stats {
	c := &st.counts
	s := Stats{
		DiskFailed: c.diskFailed.Load(), Subscriptions: c.subscriptions.Load(), Resumes: c.resumes.Load(),
		Events: make(map[protocol.Op]uint64), Losses: loadReasons(&c.losses), Gaps: loadReasons(&c.gaps),
		BacklogBytes: st.backlogs.Load(),
	}
	for op := protocol.OpCreate; op.Known(); op++ {
		s.Events[op] = c.events[op].Load()
	}
	st.journal.mu.RLock()
	s.First, s.Head, s.JournalBytes = st.journal.firstLocked(), st.journal.head, st.journal.bytes
	st.journal.mu.RUnlock()
	st.mu.RLock()
	defer st.mu.RUnlock()
	for sess := range st.sessions {
		sub := Subscriber{Agent: sess.conn.Peer().Agent, Behind: s.Head + 1 - min(sess.at.Load(), s.Head+1)}
		if addr := sess.conn.NetConn().RemoteAddr(); addr != nil {
			sub.Peer = addr.String()
		}
		s.Subscribers = append(s.Subscribers, sub)
	}
	return s
}

func loadReasons(list *[protocol.GapRescan + 1]atomic.Uint64) map[protocol.Reason]uint64 {
	m := make(map[protocol.Reason]uint64)
	for r := protocol.GapOverflow; int(r) < len(list); r++ {
		m[r] = list[r].Load()
	}
	return m
}
