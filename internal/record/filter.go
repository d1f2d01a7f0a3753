package record

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/heraldfs/heraldfs/notify"
	"github.com/heraldfs/heraldfs/watcher/tree"
)

// Filter chooses records. Its zero value lets pass what DefaultEvents names. Records about the watch
// itself always pass.
type Filter struct {
	events eventSet
	names  *namer

	exclude, include []*regexp.Regexp
	// excludedDirs remembers directories, because each event in one asks again.
	excludedDirs map[string]bool
}

// DefaultEvents is what is told if nobody chooses: every change, but no opens and reads.
const DefaultEvents = "create,delete,modify,attrib,close_write,move"

// eventSet is a set of record types; a rename is in it by its sides.
type eventSet struct {
	types            uint32
	movedFrom, moved bool // moved: moved_to
}

func (s *eventSet) add(t tree.Type) { s.types |= 1 << t }

func (s *eventSet) has(r *tree.Record) bool {
	if r.Type == tree.TypeRename {
		return (s.movedFrom && r.OldPath != "") || (s.moved && r.Path != "")
	}
	return s.types&(1<<r.Type) != 0
}

// words are inotifywait's event names, and ours. The mask is what has to be asked of the kernel.
var words = []struct {
	name string
	mask notify.Mask
	add  func(*eventSet)
}{
	{"create", notify.Create, func(s *eventSet) { s.add(tree.TypeCreate) }},
	{"delete", notify.Delete, func(s *eventSet) { s.add(tree.TypeDelete) }},
	{"delete_self", notify.Delete | notify.DeleteSelf, func(s *eventSet) { s.add(tree.TypeDelete) }},
	{"modify", notify.Modify, func(s *eventSet) { s.add(tree.TypeModify) }},
	{"attrib", notify.Attrib, func(s *eventSet) { s.add(tree.TypeAttrib) }},
	{"open", notify.Open, func(s *eventSet) { s.add(tree.TypeOpen) }},
	{"access", notify.Access, func(s *eventSet) { s.add(tree.TypeAccess) }},
	{"close_write", notify.CloseWrite, func(s *eventSet) { s.add(tree.TypeCloseWrite) }},
	{"close_nowrite", notify.CloseNowrite, func(s *eventSet) { s.add(tree.TypeCloseNowrite) }},
	{"close", notify.CloseWrite | notify.CloseNowrite, func(s *eventSet) { s.add(tree.TypeCloseWrite); s.add(tree.TypeCloseNowrite) }},
	{"moved_from", notify.Moves, func(s *eventSet) { s.movedFrom = true }},
	{"moved_to", notify.Moves, func(s *eventSet) { s.moved = true }},
	{"move", notify.Moves, func(s *eventSet) { s.movedFrom, s.moved = true, true; s.add(tree.TypeExchange) }},
	{"rename", notify.Moves, func(s *eventSet) { s.movedFrom, s.moved = true, true; s.add(tree.TypeExchange) }},
	{"exchange", notify.Moves, func(s *eventSet) { s.add(tree.TypeExchange) }},
	{"move_self", notify.MoveSelf, func(*eventSet) {}},
	{"unmount", notify.Unmount, func(*eventSet) {}},
}

// EventNames lists the names that SetEvents knows.
func EventNames() []string {
	names := make([]string, 0, len(words)+1)
	for _, w := range words {
		names = append(names, w.name)
	}
	return append(names, "all")
}

// SetEvents chooses the events in the lists, each comma separated, and returns what to ask of the
// kernel. No list means DefaultEvents.
func (f *Filter) SetEvents(lists []string) (notify.Mask, error) {
	if len(lists) == 0 {
		lists = []string{DefaultEvents}
	}
	f.events = eventSet{}
	var mask notify.Mask
	for _, list := range lists {
		for _, word := range strings.Split(list, ",") {
			m, ok := f.addWord(strings.ToLower(strings.TrimSpace(word)))
			if !ok {
				return 0, fmt.Errorf("unknown event %q; known are %s", word, strings.Join(EventNames(), ", "))
			}
			mask |= m
		}
	}
	return mask, nil
}

func (f *Filter) addWord(word string) (notify.Mask, bool) {
	var mask notify.Mask
	found := false
	for _, w := range words {
		if w.name == word || word == "all" {
			w.add(&f.events)
			mask |= w.mask
			found = true
		}
	}
	return mask, found
}

// Exclude drops what matches the regular expression: files, and directories with all that is below them.
func (f *Filter) Exclude(expr string, fold bool) error {
	re, err := compile(expr, fold)
	if err == nil {
		f.exclude = append(f.exclude, re)
	}
	return err
}

// Include drops what matches none of the included expressions.
func (f *Filter) Include(expr string, fold bool) error {
	re, err := compile(expr, fold)
	if err == nil {
		f.include = append(f.include, re)
	}
	return err
}

func compile(expr string, fold bool) (*regexp.Regexp, error) {
	if fold {
		expr = "(?i)" + expr
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, fmt.Errorf("regular expression: %w", err)
	}
	return re, nil
}

// pass reports whether r is wanted. A rename is, if one of its sides is.
func (f *Filter) pass(r *tree.Record) bool {
	if f == nil || r.Type.IsControl() {
		return true
	}
	if f.events == (eventSet{}) {
		if _, err := f.SetEvents(nil); err != nil {
			return false
		}
	}
	if !f.events.has(r) {
		return false
	}
	if len(f.exclude)+len(f.include) == 0 {
		return true
	}
	return (r.Path != "" && f.path(r.Root, r.Path)) || (r.OldPath != "" && f.path(r.OldRoot, r.OldPath))
}

func (f *Filter) path(root int, path string) bool {
	full := string(f.names.full(nil, root, path))
	if len(f.include) > 0 && !matches(f.include, full) {
		return false
	}
	if len(f.exclude) == 0 {
		return true
	}
	return !matches(f.exclude, full) && !f.inExcluded(string(f.names.full(nil, root, ".")), full)
}

// maxExcludedDirs bounds the memory of excludedDirs.
const maxExcludedDirs = 1 << 14

// inExcluded reports whether a directory above path, but below the root, is excluded.
func (f *Filter) inExcluded(root, path string) bool {
	i := strings.LastIndexByte(path, '/')
	if i < len(root) {
		return false
	}
	dir := path[:i]
	if yes, ok := f.excludedDirs[dir]; ok {
		return yes
	}
	yes := matches(f.exclude, dir) || matches(f.exclude, dir+"/") || f.inExcluded(root, dir)
	if f.excludedDirs == nil || len(f.excludedDirs) >= maxExcludedDirs {
		f.excludedDirs = make(map[string]bool)
	}
	f.excludedDirs[dir] = yes
	return yes
}

func matches(list []*regexp.Regexp, s string) bool {
	for _, re := range list {
		if re.MatchString(s) {
			return true
		}
	}
	return false
}
