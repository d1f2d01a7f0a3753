package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/pflag"
)

// logFlags are the logging flags that the long-running commands share.
type logFlags struct {
	format, level, file string
}

func (l *logFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&l.format, "log-format", "text", "text or json")
	fs.StringVar(&l.level, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&l.file, "log-file", "", "append the log to this file (default standard error; the system log with --daemon)")
}

// open returns the logger and what closes it.
func (l *logFlags) open(background bool) (*slog.Logger, func(), error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, nil, fmt.Errorf("--log-level %q: give debug, info, warn or error", l.level)
	}
	var w io.Writer = os.Stderr
	closer := func() {}
	switch {
	case l.file != "":
		f, err := os.OpenFile(l.file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
		if err != nil {
			return nil, nil, fmt.Errorf("--log-file: %w", err)
		}
		w, closer = f, func() { f.Close() }
	case background:
		w = io.Discard
		if s, err := systemLog(); err == nil {
			w, closer = s, func() { s.Close() }
		}
	}
	opts := &slog.HandlerOptions{Level: level}
	switch l.format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), closer, nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), closer, nil
	}
	closer()
	return nil, nil, fmt.Errorf("--log-format %q: give text or json", l.format)
}
