package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/heraldfs/heraldfs/internal/opgen"
)

const (
	compareOps   = 10000
	compareQuick = 300
	compareSeed  = 20
	comparePace  = time.Millisecond
	// lastWord is the file whose creation everybody has to tell in the end.
	lastWord = "last-word"
	// probeName is a file by which a watcher shows that it is ready.
	probeName = "are-you-there"
)

// rivals has all watchers listen to one run of random operations, and judges them.
func (b *bench) rivals() error {
	n := compareOps
	if b.quick {
		n = compareQuick
	}
	for _, run := range []struct {
		title string
		pace  time.Duration
	}{{"an operation a millisecond", comparePace}, {"at full speed", 0}} {
		if err := b.compareRun(n, run.title, run.pace); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) compareRun(n int, title string, pace time.Duration) error {
	depth := len(b.undo)
	dir, err := b.source("compare")
	if err != nil {
		return err
	}
	g, err := opgen.New(opgen.Options{Root: dir, Seed: compareSeed, Static: []string{"a", "a/b", "c"}, Pace: pace, Kinds: []opgen.Kind{
		opgen.Create, opgen.Write, opgen.Append, opgen.Chmod, opgen.Rename, opgen.RenameTo, opgen.RenameOver, opgen.Unlink,
		opgen.Mkdir, opgen.Rmdir, opgen.RenameDir, opgen.MkdirAll, opgen.RemoveAll}})
	if err != nil {
		return err
	}
	listeners, err := b.listeners(dir)
	if err != nil {
		return err
	}
	var truth []told
	before := g.Tree()
	_, err = g.Run(b.ctx, n, func(op opgen.Op) error {
		switch op.Kind {
		case opgen.MkdirAll, opgen.RemoveAll:
			after := g.Tree()
			truth = append(truth, difference(before, after)...)
			before = after
			return nil
		}
		if t, ok := happened(op); ok {
			truth = append(truth, t)
			before = g.Tree()
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, lastWord), nil, 0o600); err != nil {
		return err
	}
	t := b.report.add(fmt.Sprintf("%d random operations, %s: errors per 10,000 operations", n, title),
		"watcher", "missed", "wrong", "unpaired renames", "duplicate", "target")
	deadline := time.After(patience)
	for _, l := range listeners {
		late := ""
		select {
		case <-l.ended:
		case <-deadline:
			late = fmt.Sprintf(" (did not tell the last one within %v)", patience)
			deadline = time.After(0)
		case <-b.ctx.Done():
			return b.ctx.Err()
		}
		l.mu.Lock()
		s := judge(truth, slices.DeleteFunc(pair(l.heard), func(t told) bool { return t.path == lastWord || t.path == probeName }))
		l.mu.Unlock()
		per := func(k int) string { return fmt.Sprintf("%.0f", float64(k)*10000/float64(n)) }
		target := ""
		if l.name == watchName && pace > 0 {
			target = "0: " + verdict(s.missed+s.wrong+s.unpaired+s.duplicate == 0)
		}
		t.row(l.name+late, per(s.missed), per(s.wrong), per(s.unpaired), per(s.duplicate), target)
		if strings.HasPrefix(l.name, "heraldfs") && len(s.first) > 0 {
			b.say("  %s: %s", l.name, strings.Join(s.first, "; "))
		}
	}
	t.note("All listen at the same time to the same %d creates, deletes and renames of files and directories (seed %d); writes and chmods between them are not judged, nor is the order. Nested directories come and go as mkdir -p and rm -r make them.", len(truth), compareSeed)
	if pace == 0 {
		t.note("At full speed fanotify is read late now and then. The kernel has merged equal renames by then; one that no later record proves is found by comparing, or lost: see semantics.md.")
	}
	return b.unwind(depth)
}

// happened is what an operation on one name does to names.
func happened(op opgen.Op) (told, bool) {
	switch op.Kind {
	case opgen.Create, opgen.Mkdir:
		return told{kind: 'c', path: op.Path}, true
	case opgen.Unlink, opgen.Rmdir:
		return told{kind: 'd', path: op.Path}, true
	case opgen.Rename, opgen.RenameTo, opgen.RenameOver, opgen.RenameDir:
		return told{kind: 'r', path: op.Path, to: op.To}, true
	}
	return told{}, false
}

func difference(before, after map[string]opgen.Entry) []told {
	var out []told
	for path := range after {
		if _, ok := before[path]; !ok {
			out = append(out, told{kind: 'c', path: path})
		}
	}
	for path := range before {
		if _, ok := after[path]; !ok {
			out = append(out, told{kind: 'd', path: path})
		}
	}
	return out
}
