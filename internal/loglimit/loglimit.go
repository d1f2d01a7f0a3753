// Package loglimit keeps a log from growing at the will of somebody who is not trusted: a message
// that is repeated is written a few times, and then once in a while with the number of those that were left out.
//
// Messages are told apart by their text and level, which are static everywhere in this program, so that what is
// remembered is bounded. Debug lines pass: who asks for them wants them all.
package loglimit

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Options configures New. The zero value works.
type Options struct {
	// Burst is how many lines of one message are written in a Period; 0 is 10.
	Burst int
	// Period begins with the first of them; 0 is a minute.
	Period time.Duration
}

// Handler is a slog.Handler in front of another.
type Handler struct {
	slog.Handler
	shared *shared
}

// shared belongs to a Handler and those that were made of it.
type shared struct {
	opts Options

	mu     sync.Mutex
	counts map[key]*count
}

type key struct {
	level slog.Level
	text  string
}

type count struct {
	since         time.Time
	written, left int
}

// New puts a Handler in front of h.
func New(h slog.Handler, o Options) *Handler {
	if o.Burst <= 0 {
		o.Burst = 10
	}
	if o.Period <= 0 {
		o.Period = time.Minute
	}
	return &Handler{h, &shared{opts: o, counts: map[key]*count{}}}
}

// Handle implements slog.Handler. The first line after others were left out says how many.
func (h *Handler) Handle(ctx context.Context, rec slog.Record) error {
	if rec.Level > slog.LevelDebug {
		left, ok := h.shared.take(key{rec.Level, rec.Message}, rec.Time)
		if !ok {
			return nil
		}
		if left > 0 {
			rec = rec.Clone()
			rec.AddAttrs(slog.Int("left_out", left))
		}
	}
	return h.Handler.Handle(ctx, rec)
}

func (s *shared) take(k key, now time.Time) (left int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counts[k]
	if c == nil {
		c = &count{since: now}
		s.counts[k] = c
	}
	if d := now.Sub(c.since); d >= s.opts.Period || d < 0 {
		c.since, c.written = now, 0
	}
	if c.written == s.opts.Burst {
		c.left++
		return 0, false
	}
	c.written++
	left, c.left = c.left, 0
	return left, true
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{h.Handler.WithAttrs(attrs), h.shared}
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.Handler.WithGroup(name), h.shared}
}
