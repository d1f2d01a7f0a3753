package record

import (
	"encoding/base64"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/heraldfs/heraldfs/watcher/tree"
)

// jsonLines is written by hand: encoding/json would mend bad UTF-8 without a word,
// and costs more than hearing of the event.
type jsonLines struct {
	names *namer
	end   string
}

func (j *jsonLines) append(dst []byte, seq uint64, r *tree.Record) []byte {
	dst = append(dst, `{"seq":`...)
	dst = strconv.AppendUint(dst, seq, 10)
	dst = append(dst, `,"time":"`...)
	dst = r.Time.UTC().AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, `","type":"`...)
	dst = append(dst, r.Type.String()...)
	dst = append(dst, '"')
	if r.Path != "" {
		dst = j.path(dst, "path", r.Path)
		dst = j.root(dst, "root", r.Root, r.Type)
	}
	if r.OldPath != "" {
		dst = j.path(dst, "old_path", r.OldPath)
		dst = j.root(dst, "old_root", r.OldRoot, r.Type)
	}
	if r.Cookie != 0 {
		dst = append(dst, `,"cookie":`...)
		dst = strconv.AppendUint(dst, uint64(r.Cookie), 10)
	}
	dst = append(dst, `,"is_dir":`...)
	dst = strconv.AppendBool(dst, r.IsDir)
	if r.Pid != 0 {
		dst = append(dst, `,"pid":`...)
		dst = strconv.AppendInt(dst, int64(r.Pid), 10)
	}
	if r.Origin != "" {
		dst = append(dst, `,"origin":`...)
		dst = jsonString(dst, r.Origin)
	}
	dst = append(dst, '}')
	return append(dst, j.end...)
}

// root says below which of several roots a path is.
func (j *jsonLines) root(dst []byte, key string, root int, t tree.Type) []byte {
	if !j.names.many || t == tree.TypeReady {
		return dst
	}
	return j.path(dst, key, j.names.roots[root].Arg)
}

func (j *jsonLines) path(dst []byte, key, path string) []byte {
	dst = append(dst, ',', '"')
	dst = append(dst, key...)
	dst = append(dst, '"', ':')
	dst = jsonString(dst, path)
	if utf8.ValidString(path) {
		return dst
	}
	dst = append(dst, ',', '"')
	dst = append(dst, key...)
	dst = append(dst, `_b64":"`...)
	dst = base64.StdEncoding.AppendEncode(dst, []byte(path))
	return append(dst, '"')
}

const hex = "0123456789abcdef"

// jsonString quotes s, with U+FFFD for each byte that is not UTF-8.
func jsonString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r)
			i += n
			continue
		}
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c < ' ' || c == 0x7f:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			dst = append(dst, c)
		}
		i++
	}
	return append(dst, '"')
}
