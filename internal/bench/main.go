package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	// With SIGPIPE, or a reader of the output that goes away would leave everything as it is.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// section is one part of the run. It appends its tables to the report.
type section struct {
	name string
	run  func(*bench) error
}

func sections() []section {
	return []section{
		{"delay", (*bench).delay},
		{"burst", (*bench).burst},
		{"unknown", (*bench).unknown},
		{"stream", (*bench).stream},
		{"rivals", (*bench).rivals},
		{"cpu", (*bench).cpu},
		{"setup", (*bench).setup},
		{"walk", (*bench).walk},
		{"micro", (*bench).micro},
		{"cold", (*bench).cold},
		{"files", (*bench).files},
		{"requests", (*bench).requestTable},
		{"memory", (*bench).memory},
		{"dirs", (*bench).dirs},
	}
}

func run(ctx context.Context, args []string, stdout, progress io.Writer) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	markdown := flags.String("markdown", "", "write the tables to this `file` as markdown")
	only := flags.String("only", "", "run the sections that match this `regexp`: delay burst unknown stream rivals cpu setup walk micro cold files requests memory dirs")
	jobs := flags.String("jobs", "", "of the section files, run the jobs that match this `regexp`")
	quick := flags.Bool("quick", false, "run everything once and small, to see whether it works")
	pictures := flags.String("plots", "", "write plots as SVG to this `directory`")
	rounds := flags.Int("rounds", 15, "how often the walks are timed")
	samples := flags.Int("samples", 2000, "how many delays are taken")
	program := flags.String("program", "", "measure this heraldfs `binary` instead of building one")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	wantedJobs, err := regexp.Compile(*jobs)
	if err != nil {
		return fmt.Errorf("-jobs: %w", err)
	}
	if *quick {
		*rounds, *samples = 1, min(*samples, 200)
	}
	if *rounds < 1 || *samples < len(steps) {
		return fmt.Errorf("give at least one round and %d samples", len(steps))
	}
	b := &bench{ctx: ctx, progress: progress, program: *program, rounds: *rounds, samples: *samples, quick: *quick, jobs: wantedJobs}
	defer func() { err = errors.Join(err, b.unwind(0)) }()
	if err := b.prepare(); err != nil {
		return err
	}
	rep := &b.report
	rep.machine = machine()
	before := load()
	for _, s := range sections() {
		if !wanted.MatchString(s.name) {
			continue
		}
		began := time.Now()
		b.say("%s ...", s.name)
		depth, tables := len(b.undo), len(rep.tables)
		b.came = transports{}
		err := errors.Join(s.run(b), b.unwind(depth))
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if said := b.came.String(); said != "" {
			for _, t := range rep.tables[tables:] {
				t.note("%s", said)
			}
		}
		b.say("%s: %.1f s", s.name, time.Since(began).Seconds())
	}
	rep.machine += fmt.Sprintf("; load average before %s, after %s", before, load())
	if err := rep.text(stdout); err != nil {
		return err
	}
	if *pictures != "" {
		if err := b.plots(*pictures); err != nil {
			return err
		}
	}
	if *markdown == "" {
		return nil
	}
	f, err := os.Create(*markdown)
	if err != nil {
		return err
	}
	return errors.Join(rep.markdown(f), f.Close())
}
