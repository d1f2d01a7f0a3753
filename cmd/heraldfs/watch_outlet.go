package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/heraldfs/heraldfs/internal/record"
)

// outlet is where a watch prints to and logs, and how.
type outlet struct {
	opts    record.Options
	out     io.Writer
	log     *slog.Logger
	closers []func()
}

// outlet checks how records are to be printed, before anything is watched, and opens log and output.
func (f *watchFlags) outlet(roots []record.Root, filter *record.Filter, stdout io.Writer) (*outlet, error) {
	o := &outlet{
		opts: record.Options{Format: f.format, TimeFormat: f.timefmt, Roots: roots, Null: f.null, NoNewline: f.noNewline, Filter: filter},
		out:  stdout,
	}
	if _, err := record.New(io.Discard, o.opts); err != nil {
		return nil, err
	}
	log, closeLog, err := f.log.open(false)
	if err != nil {
		return nil, err
	}
	o.log, o.closers = log, append(o.closers, closeLog)
	if f.output != "" {
		file, err := os.OpenFile(f.output, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			o.close()
			return nil, fmt.Errorf("--outfile: %w", err)
		}
		o.out, o.closers = file, append(o.closers, func() { file.Close() })
	}
	if f.quiet > 1 {
		o.out = io.Discard
	}
	return o, nil
}

func (o *outlet) close() {
	for _, c := range o.closers {
		c()
	}
}

// asJSON reports whether each line is an object.
func (f *watchFlags) asJSON() bool { return f.format == "json" || f.format == "ndjson" }

// session prints to o.
func (f *watchFlags) session(o *outlet, stderr io.Writer) *watchSession {
	return &watchSession{flags: f, stderr: stderr, out: o.out, records: f.asJSON() || f.format == "msgpack"}
}
