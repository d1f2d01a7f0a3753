package loglimit

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		opts := &slog.HandlerOptions{Level: slog.LevelDebug}
		log := slog.New(New(slog.NewTextHandler(&out, opts), Options{Burst: 3}))
		lines := func(text string) int { return strings.Count(out.String(), text) }
		for i := range 1000 {
			log.Warn("refused", "err", i)
			log.With("vm", 1).WithGroup("g").Warn("refused")
			log.Debug("detail")
		}
		log.Error("refused")
		log.Warn("another")
		if a, b, c, d := lines("level=WARN msg=refused"), lines("msg=detail"), lines("level=ERROR msg=refused"), lines("msg=another"); a != 3 || b != 1000 || c != 1 || d != 1 {
			t.Errorf("%d, %d, %d and %d lines", a, b, c, d)
		}
		time.Sleep(time.Minute)
		for range 1000 {
			log.Warn("refused")
		}
		if a, b := lines("level=WARN msg=refused"), lines("left_out=1997\n"); a != 6 || b != 1 {
			t.Errorf("%d lines, %d with the count:\n%s", a, b, out.String()[out.Len()-300:])
		}
	})
}
