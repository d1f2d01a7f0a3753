package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/heraldfs/heraldfs/internal/record"
	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher"
	"github.com/heraldfs/heraldfs/watcher/tree"
)

// exitTimeout is what inotifywait exits with when --timeout has passed.
const exitTimeout = 2

// watchFlags are the flags of `heraldfs watch`.
type watchFlags struct {
	format, timefmt        string
	csv, null, noNewline   bool
	events                 []string
	exclude, excludei      []string
	include, includei      []string
	ignore                 ignoreFlags
	timeout                float64
	once, monitor          bool
	recursive, noRecursive bool
	quiet                  int
	noReady                bool
	output                 string
	backend                string
	remote                 remoteFlags
	log                    logFlags
}

func newWatchCommand() *cobra.Command {
	var f watchFlags
	cmd := &cobra.Command{
		Use:   "watch [flags] PATH... | URL",
		Short: "Print every change below directories, as it happens",
		Long: `Watch directories with all that is below them, and print each change. A new directory is watched
from its first moment: what is made in it before we could look is found and told. A rename is one
record with both names, and the paths below a renamed directory are right from the next record on.
As root there is nothing to set up (fanotify), whatever the size of the tree; otherwise each
directory is watched with inotify.

A PATH that is a file is watched by its name: one that replaces it is heard of as well. Files that the
command itself writes (-o) are not told.

Formats (--format):

  text     DIR/ EVENTS NAME, as of inotifywait; a rename is DIR/ RENAME OLD -> DIR2/NEW. If only one
           side of it is watched: MOVED_FROM or MOVED_TO.
  json     an object on each line: seq, time (RFC 3339), type, path, old_path, cookie, is_dir, pid.
           type is create, delete, modify, attrib, open, close_write, close_nowrite, access, rename,
           exchange, or about the watch itself: ready, overflow, rescan. Paths are relative to the PATH
           that is watched ("." is PATH itself); with several PATHs, root and old_root say which. A
           rename has path and old_path, or the one that is watched. cookie and pid are there if
           known, origin if a server has a name for that process (serve --origin). A name that is not UTF-8 is whole in path_b64 (base64); path has U+FFFD in it then.
  csv      the fields of text, in inotifywait's CSV; the new path of a rename is a fourth field.
  msgpack  a map for each record, with the keys of json; time is a timestamp, and a name that is
           not UTF-8 is a bin.

or a template:

` + indent(record.Directives) + `

ready comes when no later change can be missed; text, csv and templates have it on standard error.
overflow says that the kernel dropped events, and rescan what to compare with the disk then.

` + remoteHelp + `

Exit status: 0 after an event with --once, or when ended by SIGINT or SIGTERM; 1 on an error;
2 when --timeout has passed.`,
		Example: `  # all changes, until interrupted
  heraldfs watch ./src

  # as JSON, for a program
  heraldfs watch --format=json ./src | jq -r 'select(.type=="rename") | .old_path + " -> " + .path'

  # run something at the next change of a Go file; give up after a minute
  heraldfs watch --once -q -t 60 --include '\.go$' -e close_write,move,delete . && make

  # inotifywait's template; names separated by NUL
  heraldfs watch -m -r -e close_write --format '%w%f' -0 /data | xargs -0 -n1 process

  # another machine's directory, from where we were on
  heraldfs watch --format=json --since 41 tcp://host.example:7433?root=src

  # without what git would not take either; nothing below a directory that is left out costs anything
  heraldfs watch --ignore node_modules/ --ignore '*.o' --ignore '!keep.o' .

  # what leaves and enters a directory, but not below .git
  heraldfs watch -e move,create,delete --exclude '/\.git$' .`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("%s needs a PATH: a directory or file to watch; see `%s --help`", cmd.CommandPath(), cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.Context(), args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f.register(cmd.Flags())
	return cmd
}

func indent(s string) string { return "  " + strings.ReplaceAll(s, "\n", "\n  ") }

func (f *watchFlags) register(fs *pflag.FlagSet) {
	fs.SortFlags = false
	fs.StringVar(&f.format, "format", "text", "text, json, csv, msgpack or a template")
	fs.BoolVarP(&f.csv, "csv", "c", false, "the same as --format=csv")
	fs.StringVar(&f.timefmt, "timefmt", "", "strftime format of %T, with %N for nanoseconds (default RFC 3339)")
	fs.BoolVarP(&f.null, "null", "0", false, "end each record with a NUL byte instead of a newline")
	fs.BoolVar(&f.noNewline, "no-newline", false, "end a template's record with nothing")
	fs.StringArrayVarP(&f.events, "event", "e", nil, "print these events only, comma separated; can be repeated: "+
		strings.Join(record.EventNames(), ", ")+"\n(default "+record.DefaultEvents+")")
	fs.StringArrayVar(&f.exclude, "exclude", nil, "leave out what matches this extended regular expression, and all that is\nbelow a directory that does")
	fs.StringArrayVar(&f.excludei, "excludei", nil, "like --exclude, in any case")
	fs.StringArrayVar(&f.include, "include", nil, "print only what matches this extended regular expression")
	fs.StringArrayVar(&f.includei, "includei", nil, "like --include, in any case")
	f.ignore.register(fs)
	fs.BoolVarP(&f.once, "once", "1", false, "exit after the first event")
	fs.Float64VarP(&f.timeout, "timeout", "t", 0, "exit with status 2 after so many `seconds` without an event; 0 is never")
	fs.BoolVarP(&f.monitor, "monitor", "m", true, "go on after an event (the default)")
	fs.BoolVarP(&f.recursive, "recursive", "r", true, "watch what is below directories (the default)")
	fs.BoolVar(&f.noRecursive, "no-recursive", false, "watch only the entries of the directories themselves")
	fs.CountVarP(&f.quiet, "quiet", "q", "say nothing about setting up; twice: print no events either")
	fs.BoolVar(&f.noReady, "no-ready", false, "no ready record or line")
	fs.StringVarP(&f.output, "outfile", "o", "", "append to this `file` instead of printing on standard output")
	fs.StringVar(&f.backend, "watcher", watcher.Auto, backendHelp)
	f.remote.register(fs)
	f.log.register(fs)
	f.log.level = "warn"
	fs.Lookup("log-level").DefValue = "warn"
}

// filter makes the filter and the mask for the kernel.
func (f *watchFlags) filter() (*record.Filter, notify.Mask, error) {
	filter := &record.Filter{}
	mask, err := filter.SetEvents(f.events)
	if err != nil {
		return nil, 0, fmt.Errorf("--event: %w", err)
	}
	for _, group := range []struct {
		flag  string
		exprs []string
		add   func(string, bool) error
		fold  bool
	}{
		{"exclude", f.exclude, filter.Exclude, false},
		{"excludei", f.excludei, filter.Exclude, true},
		{"include", f.include, filter.Include, false},
		{"includei", f.includei, filter.Include, true},
	} {
		for _, expr := range group.exprs {
			if err := group.add(expr, group.fold); err != nil {
				return nil, 0, fmt.Errorf("--%s %q: %w", group.flag, expr, err)
			}
		}
	}
	return filter, mask, nil
}

func (f *watchFlags) run(ctx context.Context, paths []string, stdout, stderr io.Writer) error {
	if err := checkBackend(f.backend); err != nil {
		return err
	}
	if f.timeout < 0 {
		return fmt.Errorf("--timeout %v: give a number of seconds, or 0 for none", f.timeout)
	}
	if f.csv {
		f.format = "csv"
	}
	filter, mask, err := f.filter()
	if err != nil {
		return err
	}
	if u, err := f.remote.url(paths); u != nil || err != nil {
		if err != nil {
			return err
		}
		return f.runURL(ctx, u, filter, mask, stdout, stderr)
	}
	if err := f.remote.unused(); err != nil {
		return err
	}
	roots := make([]record.Root, len(paths))
	for i, path := range paths {
		st, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("cannot watch %s: %w; give a file or directory that exists", path, errors.Unwrap(err))
		}
		roots[i] = record.Root{Arg: path, IsDir: st.IsDir()}
	}
	o, err := f.outlet(roots, filter, stdout)
	if err != nil {
		return err
	}
	defer o.close()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	t, err := tree.Open(tree.Options{
		Roots: paths, NoRecursive: f.noRecursive, Ignore: f.ignore.patterns, NoIgnoreFiles: f.ignore.noFiles, Backend: f.backend, Mask: mask, DropPid: os.Getpid(), Logger: o.log,
	})
	if err != nil {
		return watchAdvice(err)
	}
	defer t.Close()
	s := f.session(o, stderr)
	if backends, _ := t.Backends(); slices.Contains(backends, watcher.Inotify) || slices.Contains(backends, watcher.Portable) {
		s.own = ownOutput(o.out, paths)
	}
	return s.run(ctx, t.Run, o.opts)
}

const backendHelp = "how changes are heard of: auto, fanotify, inotify or portable; other systems than Linux have\nportable only, see docs/semantics.md"

func checkBackend(name string) error {
	switch name {
	case watcher.Auto, watcher.Fanotify, watcher.Inotify, watcher.Portable:
		return nil
	}
	return fmt.Errorf("--watcher %q: give auto, fanotify, inotify or portable", name)
}

// watchAdvice adds what can be done.
func watchAdvice(err error) error {
	switch {
	case errors.Is(err, notify.ErrNotSupported):
		return fmt.Errorf("%w; --watcher=auto takes what works, and `heraldfs doctor` says what that is", err)
	case errors.Is(err, syscall.EMFILE):
		return fmt.Errorf("%w; raise fs.inotify.max_user_instances (sysctl) or the limit of open files (ulimit -n)", err)
	}
	return err
}

// ownOutput returns the paths of out, relative to each root that it lies in: inotify tells us
// of our own writing, which would never end.
func ownOutput(out io.Writer, roots []string) map[string]bool {
	file, ok := out.(*os.File)
	if !ok {
		return nil
	}
	at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	if err != nil {
		// Where there is no /proc, the name that was given.
		if at, err = filepath.EvalSymlinks(file.Name()); err == nil {
			at, err = filepath.Abs(at)
		}
	}
	if err != nil {
		return nil
	}
	own := make(map[string]bool)
	for i, root := range roots {
		real, err := filepath.EvalSymlinks(root)
		if err != nil {
			continue
		}
		if real, err = filepath.Abs(real); err != nil {
			continue
		}
		if rel, err := filepath.Rel(real, at); err == nil && filepath.IsLocal(rel) {
			own[ownKey(i, filepath.ToSlash(rel))] = true
		}
	}
	return own
}

func ownKey(root int, path string) string { return fmt.Sprintf("%d/%s", root, path) }

// watchSession is one run of `heraldfs watch`.
type watchSession struct {
	flags   *watchFlags
	out     io.Writer
	stderr  io.Writer
	records bool // the format has records about the watch itself
	own     map[string]bool

	writer  *record.Writer
	pump    *record.Pump
	timeout *time.Timer
	end     context.CancelCauseFunc
	done    bool
}

// Why a session ends, other than by a signal or an error.
var (
	errEnough  = errors.New("the first event has come")
	errSilence = errors.New("no event came in time")
)

// source is tree.Tree.Run, or another that takes its place.
type source func(ctx context.Context, emit func([]tree.Record)) error

func (s *watchSession) run(ctx context.Context, from source, opts record.Options) error {
	ctx, s.end = context.WithCancelCause(ctx)
	defer s.end(nil)
	s.say("Setting up watches.")
	s.pump = record.NewPump(s.out)
	var err error
	if s.writer, err = record.New(s.pump, opts); err != nil {
		return err
	}
	hungUp, stopHup := hangup(s.out)
	defer stopHup()
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-s.pump.Failed():
		case <-hungUp:
		case <-ctx.Done():
		}
		s.end(nil)
	})
	err = from(ctx, s.emit)
	s.end(nil)
	wg.Wait()
	if s.timeout != nil {
		s.timeout.Stop()
	}
	werr := s.pump.Close()
	cause := context.Cause(ctx)
	switch {
	case errors.Is(werr, syscall.EPIPE):
		return nil // whoever read us has had enough
	case werr != nil:
		return fmt.Errorf("write: %w", werr)
	case errors.Is(err, tree.ErrRootGone):
		return fmt.Errorf("%w: nothing is left to watch", err)
	case err != nil:
		return watchAdvice(err)
	case errors.Is(cause, errSilence):
		return &exitError{code: exitTimeout}
	}
	return nil
}

// say talks about the set-up as inotifywait does.
func (s *watchSession) say(text string) {
	if s.flags.quiet == 0 && !s.records {
		fmt.Fprintln(s.stderr, text)
	}
}

func (s *watchSession) emit(records []tree.Record) {
	told := false
	for i := range records {
		if s.done {
			break
		}
		told = s.one(&records[i]) || told
	}
	if err := s.writer.Flush(); err != nil {
		s.end(nil) // the pump keeps the error
	}
	if told && s.timeout != nil {
		s.timeout.Reset(s.limit())
	}
}

// one handles a record and reports whether it was an event that was told.
func (s *watchSession) one(r *tree.Record) bool {
	if r.Type == tree.TypeReady {
		if s.limit() > 0 {
			s.timeout = time.AfterFunc(s.limit(), func() { s.end(errSilence) })
		}
		if !s.flags.noReady {
			s.say("Watches established.")
		}
		if !s.records || s.flags.noReady {
			return false
		}
	}
	if len(s.own) > 0 && s.own[ownKey(r.Root, r.Path)] {
		return false
	}
	told, err := s.writer.Add(r)
	if err != nil {
		s.done = true
		s.end(nil)
		return false
	}
	if !told || r.Type.IsControl() {
		return false
	}
	if s.flags.once {
		s.done = true
		s.end(errEnough)
	}
	return true
}

func (s *watchSession) limit() time.Duration {
	return time.Duration(s.flags.timeout * float64(time.Second))
}
