package coalesce

import (
	"strconv"
	"strings"
	"testing"

	"github.com/heraldfs/heraldfs/notify"
)

// parseRaws reads one record a line: masks, then places as dir/name, a target
// after ">", "=object", "c<cookie>", "p<pid>". Objects and directories are small numbers.
func parseRaws(t testing.TB, script string) []notify.Raw {
	t.Helper()
	num := func(s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("not a number in the script: %q", s)
		}
		return n
	}
	place := func(s string) (notify.Object, string) {
		dir, name, _ := strings.Cut(s, "/")
		return obj(num(dir)), name
	}
	var raws []notify.Raw
	for line := range strings.Lines(script) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		var r notify.Raw
		for word := range strings.SplitSeq(words[0], "|") {
			switch word {
			case "RENAME":
				r.Mask |= notify.Rename
			case "ISDIR":
				r.Mask |= notify.IsDir
			case "MOVED_FROM":
				r.Mask |= notify.MovedFrom
			case "MOVED_TO":
				r.Mask |= notify.MovedTo
			case "OVERFLOW":
				r.Mask |= notify.QOverflow
			default:
				m, bad := notify.ParseMask(word)
				if bad != "" {
					t.Fatalf("unknown mask %q", bad)
				}
				r.Mask |= m
			}
		}
		to := false
		for _, word := range words[1:] {
			switch {
			case word == ">":
				to = true
			case word[0] == '=':
				r.Object = obj(num(word[1:]))
			case word[0] == 'c':
				r.Cookie = uint32(num(word[1:]))
			case word[0] == 'p':
				r.Pid = int32(num(word[1:]))
			case to:
				r.NewDir, r.NewName = place(word)
			default:
				r.Dir, r.Name = place(word)
			}
		}
		raws = append(raws, r)
	}
	return raws
}

// story writes events one a line: operation, places, "!" for Verify.
func story(events []notify.Event) string {
	place := func(o notify.Object, name string) string {
		if o.IsZero() {
			return "?"
		}
		return o.Handle + "/" + name
	}
	var b strings.Builder
	for _, ev := range events {
		b.WriteString(ev.Op.String())
		switch {
		case ev.Op == notify.OpRename || ev.Op == notify.OpExchange:
			b.WriteString(" " + place(ev.Dir, ev.Name) + " > " + place(ev.NewDir, ev.NewName))
		case ev.Dir.IsZero():
			b.WriteString(" =" + ev.Object.Handle)
		default:
			b.WriteString(" " + place(ev.Dir, ev.Name))
		}
		if ev.Verify {
			b.WriteString(" !")
		}
		b.WriteString("\n")
	}
	return b.String()
}

func lines(s string) string {
	var out []string
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n") + "\n"
}
