package passthrough

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

func noOpen() Options {
	return Options{EntryTimeout: time.Hour, AttrTimeout: time.Hour, NegativeTimeout: time.Hour, NoOpendir: true, KeepCache: true, NoOpen: true}
}

// within waits until ok, for what happens by itself.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

// TestNoOpenKeepsNothing checks that files are closed: after the last write, at the bound, and
// when the guest forgets.
func TestNoOpenKeepsNothing(t *testing.T) {
	src := testenv.Tmpfs(t)
	o := noOpen()
	o.MaxFDs = 8
	mnt, fs := mountPassthrough(t, src, o)
	writers := func() (n int) {
		fs.ios.mu.Lock()
		defer fs.ios.mu.Unlock()
		for _, f := range fs.ios.all {
			if f.writable() {
				n++
			}
		}
		return n
	}
	f, err := os.Create(filepath.Join(mnt, "f"))
	must(t, err)
	if writers() == 0 {
		t.Error("a created file is not kept for the first write")
	}
	within(t, "an idle file is closed for writing", func() bool { return writers() == 0 })
	_, err = f.WriteString("after it was closed")
	must(t, err)
	must(t, f.Close())
	if got, err := os.ReadFile(filepath.Join(src, "f")); err != nil || string(got) != "after it was closed" {
		t.Errorf("the host reads %q, %v", got, err)
	}
	for i := range 30 {
		name := filepath.Join(src, string(rune('a'+i)))
		must(t, os.WriteFile(name, []byte{byte(i)}, 0o644))
		if got, err := os.ReadFile(filepath.Join(mnt, filepath.Base(name))); err != nil || !bytes.Equal(got, []byte{byte(i)}) {
			t.Errorf("read %v, %v", got, err)
		}
		fs.ios.mu.Lock()
		held := len(fs.ios.all)
		fs.ios.mu.Unlock()
		if held > o.MaxFDs {
			t.Errorf("%d files are held open, the bound is %d", held, o.MaxFDs)
		}
	}
	for i := range 30 {
		must(t, os.Remove(filepath.Join(mnt, string(rune('a'+i)))))
	}
	within(t, "forgotten files are closed", func() bool {
		fs.ios.mu.Lock()
		defer fs.ios.mu.Unlock()
		return len(fs.ios.all) <= 1
	})
}

// TestNoOpenWrites checks what an open file would have known of itself.
func TestNoOpenWrites(t *testing.T) {
	src := testenv.Tmpfs(t)
	mnt, _ := mountPassthrough(t, src, noOpen())
	path, host := filepath.Join(mnt, "f"), filepath.Join(src, "f")
	check := func(want string) {
		t.Helper()
		if got, err := os.ReadFile(host); err != nil || string(got) != want {
			t.Errorf("the host reads %q, %v; want %q", got, err, want)
		}
	}
	must(t, os.WriteFile(path, []byte("one"), 0o644))
	check("one")
	must(t, os.WriteFile(path, []byte("2"), 0o644)) // truncates
	check("2")
	a, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer a.Close()
	h, err := os.OpenFile(host, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer h.Close()
	for range 3 { // the guest's kernel does not know what the host appends
		_, err = h.WriteString("h")
		must(t, err)
		_, err = a.WriteString("g")
		must(t, err)
	}
	check("2hghghg")
	must(t, a.Chmod(0o400))
	_, err = a.WriteString("!")
	must(t, err)
	check("2hghghg!")
	must(t, unix.Fallocate(int(a.Fd()), 0, 0, 20))
	must(t, a.Sync())
	if st, err := os.Stat(host); err != nil || st.Size() != 20 {
		t.Errorf("after fallocate: %v, %v", st, err)
	}
	must(t, os.Remove(path))
	r, err := os.Open(path)
	if err == nil {
		r.Close()
		t.Error("opened what is removed")
	}
	_, err = a.WriteString("still")
	must(t, err)
}

// TestNoOpenReadsWhatTheHostRemoved reads on in a file that the host has unlinked.
func TestNoOpenReadsWhatTheHostRemoved(t *testing.T) {
	src := testenv.Tmpfs(t)
	mnt, _ := mountPassthrough(t, src, noOpen())
	must(t, os.WriteFile(filepath.Join(src, "f"), bytes.Repeat([]byte("x"), 1<<20), 0o644))
	f, err := os.Open(filepath.Join(mnt, "f"))
	must(t, err)
	defer f.Close()
	buf := make([]byte, 1)
	_, err = f.ReadAt(buf, 0)
	must(t, err)
	must(t, os.Remove(filepath.Join(src, "f")))
	if _, err := f.ReadAt(buf, 1<<20-1); err != nil || buf[0] != 'x' {
		t.Errorf("read %q, %v", buf, err)
	}
}
