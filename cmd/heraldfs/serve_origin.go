package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heraldfs/heraldfs/protocol"
)

// originRule names a process: by its id, and then its children are meant too, or by its name.
type originRule struct {
	name string
	pid  int32
	comm string
}

type originRules struct{ rules []originRule }

func parseOrigins(args []string) (originRules, error) {
	var o originRules
	for _, arg := range args {
		name, who, ok := strings.Cut(arg, "=")
		if !ok || name == "" || who == "" || len(name) > protocol.MaxOrigin {
			return o, fmt.Errorf("--origin %q: give NAME=PID or NAME=COMM", arg)
		}
		r := originRule{name: name, comm: who}
		if pid, err := strconv.ParseInt(who, 10, 32); err == nil {
			if pid <= 0 {
				return o, fmt.Errorf("--origin %q: no process has that id", arg)
			}
			r.pid, r.comm = int32(pid), ""
		}
		if len(r.comm) > maxComm {
			return o, fmt.Errorf("--origin %q: the kernel keeps %d bytes of a process's name; see /proc/PID/comm", arg, maxComm)
		}
		o.rules = append(o.rules, r)
	}
	return o, nil
}

// check refuses at the start what can never name anybody, and warns of what does not yet.
func (o originRules) check(roots []*servedRoot, log *slog.Logger) error {
	if len(o.rules) == 0 {
		return nil
	}
	for _, r := range roots {
		if names, _ := r.source.tree.Backends(); slices.ContainsFunc(names, func(n string) bool { return !strings.HasPrefix(n, "fanotify") }) {
			return fmt.Errorf("--origin: %s is watched by %s, which does not tell who did it: it needs fanotify", r.dir, strings.Join(names, ", "))
		}
	}
	for i := range o.rules {
		switch r := &o.rules[i]; {
		case r.alive():
		case r.pid != 0:
			return fmt.Errorf("--origin %s=%d: no process has that id", r.name, r.pid)
		default:
			log.Warn("no process has the name of an --origin yet", "origin", r.name, "comm", r.comm)
		}
	}
	return nil
}

// judge is stream.ServerOptions.Origin.
func (o originRules) judge(name string) (note string, err error) {
	var who, names []string
	for i := range o.rules {
		r := &o.rules[i]
		if !slices.Contains(names, r.name) {
			names = append(names, r.name)
		}
		switch {
		case r.name != name:
		case r.alive():
			return "", nil
		case r.pid != 0:
			who = append(who, fmt.Sprintf("process %d, which has ended", r.pid))
		default:
			who = append(who, fmt.Sprintf("processes called %q, of which there is none", r.comm))
		}
	}
	switch {
	case len(names) == 0:
		return "", fmt.Errorf("origin %q: %w: the server has no --origin", name, protocol.ErrNoOrigin)
	case len(who) == 0:
		return "", fmt.Errorf("origin %q: %w: the server has %s", name, protocol.ErrNoOrigin, strings.Join(names, ", "))
	}
	return fmt.Sprintf("origin %q means %s", name, strings.Join(who, ", and ")), nil
}

// alive reports whether there is a process that is meant.
func (r *originRule) alive() bool {
	if r.pid != 0 {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", r.pid))
		return err == nil
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return true // nobody knows
	}
	return slices.ContainsFunc(procs, func(e os.DirEntry) bool {
		pid, err := strconv.ParseInt(e.Name(), 10, 32)
		return err == nil && r.matches(int32(pid))
	})
}

const (
	// maxComm is TASK_COMM_LEN without the NUL.
	maxComm = 15
	// maxAncestors bounds the climb to a process's ancestors.
	maxAncestors = 64
	// originLife is how long an answer is believed: ids are used again.
	originLife = time.Second
	// maxOrigins bounds what is remembered.
	maxOrigins = 4096
)

// find returns the name of the first rule that pid is meant by, "" for none.
func (o originRules) find(pid int32) string {
	for i := range o.rules {
		if o.rules[i].matches(pid) {
			return o.rules[i].name
		}
	}
	return ""
}

func (r *originRule) matches(pid int32) bool {
	if r.pid == 0 {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err == nil && strings.TrimSuffix(string(comm), "\n") == r.comm
	}
	for range maxAncestors {
		if pid == r.pid {
			return true
		}
		parent, err := parentOf(pid)
		if err != nil || parent <= 1 {
			return false
		}
		pid = parent
	}
	return false
}

// parentOf reads the fourth field of /proc/PID/stat; the second is a name that may hold anything, in
// parentheses.
func parentOf(pid int32) (int32, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 2 {
		return 0, errors.New("short /proc/PID/stat")
	}
	n, err := strconv.ParseInt(string(fields[1]), 10, 32)
	return int32(n), err
}

// originCache asks /proc seldom. For one goroutine.
type originCache struct {
	rules originRules
	known map[int32]cachedOrigin
}

type cachedOrigin struct {
	name string
	at   time.Time
}

func newOriginCache(rules originRules) *originCache {
	return &originCache{rules: rules, known: make(map[int32]cachedOrigin)}
}

// name returns what the process is called, "" for nothing.
func (c *originCache) name(pid int32) string {
	now := time.Now()
	if k, ok := c.known[pid]; ok && now.Sub(k.at) < originLife {
		return k.name
	}
	if len(c.known) >= maxOrigins {
		clear(c.known)
	}
	name := c.rules.find(pid)
	c.known[pid] = cachedOrigin{name, now}
	return name
}
