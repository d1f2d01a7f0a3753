package main

import "fmt"

// told is one event about a name, of the truth or as a watcher told it: a create, a delete, or a rename with both paths. A half of a rename
// that a watcher tells without the other is a create or a delete with half set.
type told struct {
	kind     byte // 'c', 'd' or 'r'
	path, to string
	half     bool
}

func (t told) String() string {
	if t.kind == 'r' {
		return fmt.Sprintf("rename %q -> %q", t.path, t.to)
	}
	name := "create"
	if t.kind == 'd' {
		name = "delete"
	}
	return fmt.Sprintf("%s %q", name, t.path)
}

// score is how a watcher did.
type score struct {
	missed    int // events of the truth of which nothing was told
	unpaired  int // renames that were told as something that went and something that came
	wrong     int // told, but never happened
	duplicate int // told more often than it happened
	first     []string
}

// judge compares what a watcher told with what happened. Order is not judged.
func judge(truth, heard []told) score {
	var s score
	have := make(map[told]int)
	for _, h := range heard {
		h.half = false
		have[h]++
	}
	happened := make(map[told]bool)
	var renames []told
	for _, t := range truth {
		happened[t] = true
		switch {
		case have[t] > 0:
			have[t]--
		case t.kind == 'r':
			renames = append(renames, t)
		default:
			s.miss(t)
		}
	}
	// Only now: a half may not take what a create or a delete needs.
	for _, t := range renames {
		from, to := told{kind: 'd', path: t.path}, told{kind: 'c', path: t.to}
		happened[from], happened[to] = true, true
		if have[from] == 0 && have[to] == 0 {
			s.miss(t)
			continue
		}
		s.unpaired++
		for _, half := range []told{from, to} {
			if have[half] > 0 {
				have[half]--
			}
		}
	}
	for h, n := range have {
		if n == 0 {
			continue
		}
		if happened[h] {
			s.duplicate += n
		} else {
			s.wrong += n
		}
		s.example(fmt.Sprintf("%d x not true: %v", n, h))
	}
	return s
}

func (s *score) miss(t told) {
	s.missed++
	s.example("missed: " + t.String())
}

func (s *score) example(text string) {
	if len(s.first) < 10 {
		s.first = append(s.first, text)
	}
}

// pair makes renames of the halves that follow each other.
func pair(heard []told) []told {
	var out []told
	for i := 0; i < len(heard); i++ {
		t := heard[i]
		if t.half && t.kind == 'd' && i+1 < len(heard) && heard[i+1].half && heard[i+1].kind == 'c' {
			out = append(out, told{kind: 'r', path: t.path, to: heard[i+1].path})
			i++
			continue
		}
		out = append(out, t)
	}
	return out
}
