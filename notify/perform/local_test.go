package perform

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/notify"
)

const slot = notify.SlotFree

func newBed(t *testing.T) (*Local, string) {
	t.Helper()
	dir := t.TempDir()
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := NewLocal(root, 16)
	t.Cleanup(func() {
		l.Close()
		unix.Close(root)
	})
	return l, dir
}

func TestCalls(t *testing.T) {
	l, dir := newBed(t)
	root := notify.SlotRoot
	for _, c := range []notify.Call{
		{Op: notify.CallMkdir, Dir: root, Name: "d", Mode: 0o700},
		{Op: notify.CallWalk, Dir: root, Name: "d", Slot: slot},
		{Op: notify.CallMknod, Dir: slot, Name: "f", Mode: unix.S_IFREG | 0o600},
		{Op: notify.CallSymlink, Dir: slot, Name: "s", NewName: "/"},
		{Op: notify.CallLink, Dir: slot, Name: "f", NewDir: root, NewName: "g"},
		{Op: notify.CallOpen, Dir: root, Name: "g", Mode: unix.O_WRONLY, Slot: slot + 1},
		{Op: notify.CallOpen, Dir: root, Name: "g", Mode: unix.O_RDONLY},
		{Op: notify.CallOpen, Dir: slot, Name: "made", Mode: unix.O_WRONLY | unix.O_CREAT},
		{Op: notify.CallUnlink, Dir: slot, Name: "made"},
		{Op: notify.CallUnlink, Dir: slot, Name: "f"},
		{Op: notify.CallRename, Dir: root, Name: "g", NewDir: slot, NewName: "h"},
		{Op: notify.CallTouch, Dir: slot, Name: "h", Mode: notify.TouchBoth},
		{Op: notify.CallTouch, Dir: slot, Name: "s", Mode: notify.TouchMtime},
		{Op: notify.CallTouch, Dir: slot, Mode: notify.TouchAtime},
		{Op: notify.CallLook, Dir: slot, Name: "s"},
		{Op: notify.CallStat, Dir: slot, Name: "s"},
		{Op: notify.CallStat, Dir: slot},
		{Op: notify.CallStat, Dir: slot, Name: "none"},
		{Op: notify.CallAsk, Dir: slot, Name: "h"},
		{Op: notify.CallAsk, Dir: slot, Name: "none"},
		{Op: notify.CallMkdir, Dir: slot, Name: "e", Mode: 0o700},
		{Op: notify.CallRmdir, Dir: slot, Name: "e"},
		{Op: notify.CallClose, Slot: slot + 1},
		{Op: notify.CallClose, Slot: slot + 1},
	} {
		if err := l.Do(&c); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	st, err := os.Stat(filepath.Join(dir, "d", "h"))
	if err != nil || st.ModTime().Unix() != 1 {
		t.Errorf("d/h: %v, %v; want it with a time of one second", st, err)
	}
	if to, err := os.Readlink(filepath.Join(dir, "d", "s")); err != nil || to != "/" {
		t.Errorf("d/s leads to %q, %v", to, err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("the root has %v, want d alone", got)
	}
}

func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

// What a peer that is not trusted may send.
func TestNothingOutside(t *testing.T) {
	l, dir := newBed(t)
	if err := os.Symlink("/", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []notify.Call{
		{Op: notify.CallWalk, Dir: notify.SlotRoot, Name: "..", Slot: slot},
		{Op: notify.CallWalk, Dir: notify.SlotRoot, Name: ".", Slot: slot},
		{Op: notify.CallWalk, Dir: notify.SlotRoot, Name: "/etc", Slot: slot},
		{Op: notify.CallWalk, Dir: notify.SlotRoot, Name: "", Slot: slot},
		{Op: notify.CallWalk, Dir: notify.SlotRoot, Name: "out", Slot: slot},
		{Op: notify.CallWalk, Dir: notify.SlotNone, Name: "out", Slot: slot},
		{Op: notify.CallOpen, Dir: notify.SlotRoot, Name: "out/etc/passwd"},
		{Op: notify.CallOpen, Dir: notify.SlotRoot, Name: "out"},
		{Op: notify.CallUnlink, Dir: slot + 3, Name: "out"},
		{Op: notify.CallMkdir, Dir: notify.SlotRoot, Name: "../x", Mode: 0o700},
		{Op: notify.CallMkdir, Dir: notify.SlotRoot, Name: "a\x00b", Mode: 0o700},
		{Op: notify.CallRename, Dir: notify.SlotRoot, Name: "out", NewDir: notify.SlotRoot, NewName: "../out"},
		{Op: notify.CallRename, Dir: notify.SlotRoot, Name: "out", NewDir: 1 << 31, NewName: "in"},
		{Op: notify.CallLink, Dir: notify.SlotRoot, Name: "out", NewDir: notify.SlotRoot, NewName: ""},
		{Op: notify.CallTouch, Dir: notify.SlotRoot, Name: "out", Mode: 4},
		{Op: notify.CallOp(77), Dir: notify.SlotRoot, Name: "out"},
		{},
	} {
		if err := l.Do(&c); err == nil {
			t.Errorf("%+v was performed", c)
		}
	}
	if got := names(t, dir); len(got) != 1 || got[0] != "out" {
		t.Errorf("the root has %v, want what it had", got)
	}
}

func TestSlots(t *testing.T) {
	l, dir := newBed(t)
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	walk := func(s notify.Slot) error {
		return l.Later(&notify.Call{Op: notify.CallWalk, Dir: notify.SlotRoot, Name: "d", Slot: s})
	}
	for _, s := range []notify.Slot{notify.SlotRoot, 16, 1 << 31} {
		if err := walk(s); !errors.Is(err, ErrBadCall) {
			t.Errorf("walk to slot %d: %v", s, err)
		}
	}
	if err := walk(15); err != nil {
		t.Fatal(err)
	}
	if err := walk(15); !errors.Is(err, ErrBadCall) {
		t.Errorf("a slot in use was opened once more: %v", err)
	}
	// The root is nobody's to close.
	for _, s := range []notify.Slot{notify.SlotNone, notify.SlotRoot, 1 << 31, 15} {
		if err := l.Do(&notify.Call{Op: notify.CallClose, Slot: s}); err != nil {
			t.Errorf("close of slot %d: %v", s, err)
		}
	}
	if err := walk(15); err != nil {
		t.Errorf("walk after a close: %v", err)
	}
}
