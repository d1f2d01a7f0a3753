package stream

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/protocol"
)

// Options for Open. The zero value works: a journal in memory.
type Options struct {
	// Dir, if set, keeps the journal there, over restarts. It is created; one Stream at a
	// time can have it.
	Dir string
	// JournalEvents and JournalBytes bound the journal; 0 is 262,144 and 128 MiB.
	JournalEvents int
	JournalBytes  int
	// BacklogEvents and BacklogBytes bound what is kept for one slow subscriber; 0 is
	// half the journal's. BacklogTotal bounds it for all of them together, in bytes; 0 is twice the
	// journal's.
	BacklogEvents int
	BacklogBytes  int
	BacklogTotal  int
	// Root is the directory that the stream is about, if it has an identity.
	Root notify.Object
	// Barrier, if set, returns when every change that was made before the call was published.
	Barrier func(ctx context.Context) error
	// Logger is told of gaps, sessions and the journal; nil is silent.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	set := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&o.JournalEvents, 1<<18)
	set(&o.JournalBytes, 128<<20)
	set(&o.BacklogEvents, o.JournalEvents/2)
	set(&o.BacklogBytes, o.JournalBytes/2)
	set(&o.BacklogTotal, 2*o.JournalBytes)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Stream is one root's changes.
type Stream struct {
	opts    Options
	log     *slog.Logger
	id      []byte
	root    protocol.Identity
	journal journal
	// backlogs is the bytes in all sessions' backlogs.
	backlogs atomic.Int64
	counts   counts

	pub     sync.Mutex
	maker   maker
	disk    *disk // nil: memory only
	resumed bool  // what happened while nobody listened is still to be told
	batch   []*entry

	// wanted counts the sessions whose subscribers want states.
	wanted atomic.Int64

	mu       sync.RWMutex
	sessions map[*session]struct{}
}

// Caps are what Streams can do, for protocol.Options.
func Caps() []string { return []string{protocol.CapState, protocol.CapBarrier} }

// WantsState reports whether a subscriber has a use for Record.FromState and ToState.
func (st *Stream) WantsState() bool { return st.wanted.Load() > 0 }

// Open makes a Stream, with what its journal on disk remembers.
func Open(o Options) (*Stream, error) {
	o = o.withDefaults()
	st := &Stream{
		opts: o, log: o.Logger, sessions: make(map[*session]struct{}),
		journal: journal{maxEvents: o.JournalEvents, maxBytes: o.JournalBytes},
	}
	secret := random(32)
	st.id = random(protocol.StreamSize)
	if o.Dir != "" {
		d, kept, err := openDisk(o.Dir, &o, st.id, secret)
		if err != nil {
			return nil, fmt.Errorf("journal %s: %w", o.Dir, err)
		}
		st.disk, st.id, secret = d, d.meta.Stream, d.meta.Secret
		if st.resumed = d.continued; st.resumed {
			st.journal.head = d.head
			st.journal.append(kept)
			d.drop(st.firstKept())
		}
	}
	st.maker.sealer = protocol.NewSealer(secret)
	st.root = st.maker.sealer.Seal(o.Root)
	return st, nil
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

func (st *Stream) firstKept() uint64 {
	first, _ := st.journal.bounds()
	return first
}

// ID is the name of the numbering.
func (st *Stream) ID() []byte { return slices.Clone(st.id) }

// Head is the last sequence given out.
func (st *Stream) Head() uint64 {
	_, head := st.journal.bounds()
	return head
}

// Sealer makes the identities that this stream's events carry.
func (st *Stream) Sealer() *protocol.Sealer { return st.maker.sealer }

// Ready says that from now on no change goes unheard. What a continued journal has missed becomes
// a gap: publish nothing before it. Calling it again does nothing.
func (st *Stream) Ready() {
	st.pub.Lock()
	resumed := st.resumed
	st.resumed = false
	st.pub.Unlock()
	if resumed {
		st.Publish([]Record{{Lost: protocol.GapRestart}})
	}
}

// Run publishes what src finds until ctx ends.
func (st *Stream) Run(ctx context.Context, src Source) error { return src.Run(ctx, st.Publish) }

// Publish numbers records, keeps them and wakes the subscribers. It does not keep the slice
// and never waits for a subscriber. Records with an operation that has no number are left out.
func (st *Stream) Publish(records []Record) {
	st.pub.Lock()
	defer st.pub.Unlock()
	_, head := st.journal.bounds()
	batch := st.batch[:0]
	for i := range records {
		if r := &records[i]; r.Lost != 0 || r.Op.Known() {
			head++
			st.counts.published(r)
			batch = append(batch, st.maker.make(head, r))
		}
	}
	if len(batch) == 0 {
		return
	}
	// On disk first: nobody may have seen a number that a restart gives out again.
	if st.disk != nil {
		if err := st.disk.write(batch); err != nil {
			st.log.Error("journal is kept in memory only from now on", "err", err)
			st.disk.abandon()
			st.disk = nil
			st.counts.diskFailed.Store(true)
		}
	}
	st.journal.append(batch)
	if st.disk != nil {
		st.disk.drop(st.firstKept())
	}
	clear(batch)
	st.batch = batch
	st.wake()
}

func (st *Stream) wake() {
	pressed := st.journal.pressed()
	st.mu.RLock()
	defer st.mu.RUnlock()
	for s := range st.sessions {
		nudge(s.wake)
		if s.at.Load() < pressed {
			nudge(s.behind)
		}
	}
}

func (st *Stream) overBudget() bool {
	return st.backlogs.Load() > int64(st.opts.BacklogTotal)
}

// Close closes the journal; what is published later is kept in memory only. Sessions are
// the Server's to end. Idempotent.
func (st *Stream) Close() error {
	st.pub.Lock()
	defer st.pub.Unlock()
	if st.disk == nil {
		return nil
	}
	err := st.disk.close()
	st.disk = nil
	return err
}

// attach serves a subscriber until its connection or ctx ends.
func (st *Stream) attach(ctx context.Context, c *protocol.Conn, sub *protocol.Subscribe, ping time.Duration, note string) error {
	f, err := newFilter(sub)
	if err != nil {
		return err
	}
	s := &session{
		st: st, conn: c, filter: f, compact: sub.Compact, window: int(sub.Window),
		wake: make(chan struct{}, 1), behind: make(chan struct{}, 1),
	}
	if s.window == 0 {
		s.window = protocol.DefaultWindow
	}
	first, head := st.journal.bounds()
	next := head + 1
	if sub.Resume {
		next = sub.From + 1
		if len(sub.Stream) > 0 && !bytes.Equal(sub.Stream, st.id) || sub.From > head {
			// Nothing is known of what the subscriber has missed.
			next = 1
			s.pending = &protocol.Gap{First: 1, Last: head, Reason: protocol.GapStream}
			s.moveLocked(head + 1)
		}
	}
	s.sent = next - 1
	if s.pending == nil {
		s.moveLocked(next)
	}
	st.counts.subscriptions.Add(1)
	if sub.Resume {
		st.counts.resumes.Add(1)
	}
	st.log.Info("subscribed", "peer", c.NetConn().RemoteAddr(), "next", next, "oldest", first, "head", head)
	if c.Shares(protocol.CapState) {
		st.wanted.Add(1)
		defer st.wanted.Add(-1)
	}
	if err := c.Write(&protocol.Subscribed{Root: sub.Root, Stream: st.id, Next: next, Head: head, Object: st.root, Note: note}); err != nil {
		return err
	}
	st.mu.Lock()
	st.sessions[s] = struct{}{}
	st.mu.Unlock()
	err = s.run(ctx, ping)
	st.mu.Lock()
	delete(st.sessions, s)
	st.mu.Unlock()
	st.backlogs.Add(int64(-s.counted))
	return err
}
