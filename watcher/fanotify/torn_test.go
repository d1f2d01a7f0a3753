package fanotify

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
)

func TestTorn(t *testing.T) {
	testenv.Need(t, testenv.Fanotify)
	dir := t.TempDir()
	w, err := Open(Options{Root: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	q := (*queue)(w)
	r := notify.Raw{Mask: notify.Rename, Dir: w.root, Name: "a", NewDir: w.root, NewName: "b"}
	if q.Torn(&r) {
		t.Error("after a plain rename")
	}
	if err := os.WriteFile(filepath.Join(dir, "a"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if !q.Torn(&r) {
		t.Error("not after what may be an exchange")
	}
	for what, r := range map[string]notify.Raw{
		"a create":       {Mask: notify.Create, Dir: w.root, Name: "a"},
		"a move in":      {Mask: notify.Rename, NewDir: w.root, NewName: "a"},
		"a move out":     {Mask: notify.Rename, Dir: w.root, Name: "a"},
		"another system": {Mask: notify.Rename, Dir: notify.Object{FS: 1, Handle: "x"}, Name: "a", NewDir: w.root, NewName: "b"},
	} {
		if q.Torn(&r) {
			t.Error(what)
		}
	}
}
