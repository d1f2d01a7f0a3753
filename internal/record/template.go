package record

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/heraldfs/heraldfs/watcher/tree"
)

// Directives documents the templates.
const Directives = `%w  directory of the change with a slash, or the watched file itself
%f  name in it
%e  events, separated by commas; %Xe separates them with X
%o  old path of a rename; for it, %w and %f are the new one, if that is known
%c  inotify's cookie in hexadecimal, 0 if there is none
%p  process that did it, 0 if not known
%T  time, in the format of --timefmt
%0  a NUL byte
%n  a newline
%%  a percent sign`

// template is a parsed format.
type template struct {
	names   *namer
	end     string
	parts   []part
	timefmt string
	loc     *time.Location
}

// part is literal text, or a directive.
type part struct {
	text string
	verb byte
	sep  byte
}

func newTemplate(o *Options, names *namer, end string) (*template, error) {
	t := &template{names: names, end: end, timefmt: o.TimeFormat, loc: o.Location}
	if t.loc == nil {
		t.loc = time.Local
	}
	if t.timefmt != "" {
		if _, err := strftime(nil, t.timefmt, time.Unix(0, 0)); err != nil {
			return nil, err
		}
	}
	var lit strings.Builder
	flush := func() {
		if lit.Len() > 0 {
			t.parts = append(t.parts, part{text: lit.String()})
			lit.Reset()
		}
	}
	f := o.Format
	for i := 0; i < len(f); i++ {
		if f[i] != '%' {
			lit.WriteByte(f[i])
			continue
		}
		if i++; i == len(f) {
			return nil, fmt.Errorf("format %q ends in a lone %%; write %%%% for a percent sign", f)
		}
		switch c := f[i]; {
		case c == '%':
			lit.WriteByte('%')
		case c == '0':
			lit.WriteByte(0)
		case c == 'n':
			lit.WriteByte('\n')
		case i+1 < len(f) && f[i+1] == 'e' && c != 'e':
			flush()
			t.parts = append(t.parts, part{verb: 'e', sep: c})
			i++
		case strings.IndexByte("wfeocpT", c) >= 0:
			flush()
			t.parts = append(t.parts, part{verb: c, sep: ','})
		default:
			return nil, fmt.Errorf("format %q: unknown directive %%%c; known are\n%s", f, c, Directives)
		}
	}
	flush()
	return t, nil
}

func (t *template) append(dst []byte, _ uint64, r *tree.Record) []byte {
	root, path := r.Root, r.Path
	if path == "" {
		root, path = r.OldRoot, r.OldPath
	}
	for _, p := range t.parts {
		switch p.verb {
		case 0:
			dst = append(dst, p.text...)
		case 'w':
			dst, _ = t.names.split(dst, root, path)
		case 'f':
			n := len(dst)
			d, name := t.names.split(dst, root, path)
			dst = append(d[:n], name...)
		case 'e':
			dst = append(dst, strings.ReplaceAll(events(r), ",", string(p.sep))...)
		case 'o':
			if both(r) {
				dst = t.names.full(dst, r.OldRoot, r.OldPath)
			}
		case 'c':
			dst = strconv.AppendUint(dst, uint64(r.Cookie), 16)
		case 'p':
			dst = strconv.AppendInt(dst, int64(r.Pid), 10)
		case 'T':
			if t.timefmt == "" {
				dst = r.Time.In(t.loc).AppendFormat(dst, time.RFC3339Nano)
				continue
			}
			// The format was tried when it was parsed.
			dst, _ = strftime(dst, t.timefmt, r.Time.In(t.loc))
		}
	}
	return append(dst, t.end...)
}

// strftime appends t in the format of strftime(3), in the C locale.
func strftime(dst []byte, format string, t time.Time) ([]byte, error) {
	layouts := map[byte]string{
		'Y': "2006", 'y': "06", 'm': "01", 'd': "02", 'e': "_2", 'H': "15", 'I': "03", 'M': "04", 'S': "05",
		'p': "PM", 'a': "Mon", 'A': "Monday", 'b': "Jan", 'h': "Jan", 'B': "January", 'j': "002",
		'F': "2006-01-02", 'T': "15:04:05", 'R': "15:04", 'D': "01/02/06", 'r': "03:04:05 PM",
		'c': "Mon Jan _2 15:04:05 2006", 'x': "01/02/06", 'X': "15:04:05", 'z': "-0700", 'Z': "MST",
	}
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			dst = append(dst, format[i])
			continue
		}
		i++
		switch c := format[i]; c {
		case '%':
			dst = append(dst, '%')
		case 'n':
			dst = append(dst, '\n')
		case 't':
			dst = append(dst, '\t')
		case 's':
			dst = strconv.AppendInt(dst, t.Unix(), 10)
		case 'N':
			dst = append(dst, fmt.Sprintf("%09d", t.Nanosecond())...)
		default:
			layout, ok := layouts[c]
			if !ok {
				return dst, fmt.Errorf("time format %q: %%%c is not known", format, c)
			}
			dst = t.AppendFormat(dst, layout)
		}
	}
	return dst, nil
}
