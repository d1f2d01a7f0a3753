package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
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
