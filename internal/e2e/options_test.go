package e2e

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/testenv"
	"github.com/heraldfs/heraldfs/notify"
)

// fenced makes the fence on the host and waits until both ears have heard it.
func fenced(t *testing.T, host string, ears ...*ear) {
	t.Helper()
	check(t, os.Mkdir(host+"/fence", 0o755))
	for _, e := range ears {
		e.wait(".", "CREATE,ISDIR fence")
	}
}

func TestReadOnly(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			dirs := place(t, "src/sub", "mnt")
			src, mnt := filepath.Dir(dirs[0]), dirs[1]
			serve(t, src, mnt, "--read-only", "--watcher="+backend)
			for _, err := range []error{
				os.WriteFile(mnt+"/f", nil, 0o644), os.Mkdir(mnt+"/d", 0o755), os.Remove(mnt + "/sub"),
				os.Chmod(mnt+"/sub", 0o700), os.Rename(mnt+"/sub", mnt+"/x"),
			} {
				if !errors.Is(err, unix.EROFS) {
					t.Errorf("a change: %v", err)
				}
			}
			native, guest := listen(t, src, notify.DefaultMask, "sub"), listen(t, mnt, notify.DefaultMask, "sub")
			write(t, src+"/f", "x")
			check(t, os.Rename(src+"/f", src+"/sub/g"))
			check(t, os.Chmod(src+"/sub/g", 0o600))
			check(t, os.Remove(src+"/sub/g"))
			check(t, os.Remove(src+"/sub"))
			fenced(t, src, native, guest)
			// Natively the directory's end can come after the fence: it comes when the daemon lets go of it.
			native.wait("sub", "IGNORED")
			compare(t, native, guest)
		})
	}
}

// compare wants the guest to have heard what the native watcher heard.
func compare(t *testing.T, native, guest *ear) {
	t.Helper()
	want, got := native.story(), guest.story()
	for watch, w := range want {
		if !slices.Equal(w, got[watch]) {
			t.Errorf("watch %q: natively\n  %s\nin the guest\n  %s", watch, strings.Join(w, "\n  "), strings.Join(got[watch], "\n  "))
		}
	}
	for watch, g := range got {
		if want[watch] == nil {
			t.Errorf("watch %q: nothing natively, in the guest\n  %s", watch, strings.Join(g, "\n  "))
		}
	}
}

func TestNotifyOff(t *testing.T) {
	dirs := place(t, "src", "mnt")
	src, mnt := dirs[0], dirs[1]
	serve(t, src, mnt, "--notify=off", "--cache-timeout=1ms")
	write(t, src+"/f", "one")
	eventually(t, "the file shows", func() bool {
		b, err := os.ReadFile(mnt + "/f")
		return err == nil && string(b) == "one"
	})
	e := listen(t, mnt, notify.DefaultMask)
	write(t, src+"/g", "x")
	write(t, mnt+"/own", "x") // the guest's own changes are heard as on any file system
	e.wait(".", "CLOSE_WRITE own")
	if e.has(".", "CREATE g") {
		t.Error("a host change was heard")
	}
	wrong(t, exec.Command(bin, "sync", mnt), "--notify=off")
}

// Changes that are masked make no event, and still show.
func TestMask(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			dirs := place(t, "src", "mnt")
			src, mnt := dirs[0], dirs[1]
			write(t, src+"/old", "old text")
			write(t, src+"/moving", "x")
			d := serve(t, src, mnt, "--mask=delete,move", "--watcher="+backend)
			if got := read(t, mnt+"/old"); got != "old text" {
				t.Fatalf("read %q", got)
			}
			if _, err := os.Stat(mnt + "/new"); !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			e := listen(t, mnt, notify.AllMask&^notify.Access&^notify.Open&^notify.CloseNowrite)
			write(t, src+"/new", "fresh")
			write(t, src+"/old", "NEW TEXT")
			check(t, os.Chmod(src+"/old", 0o600))
			d.sync()
			if got := read(t, mnt+"/new") + read(t, mnt+"/old"); got != "freshNEW TEXT" {
				t.Errorf("read %q", got)
			}
			if st, err := os.Stat(mnt + "/old"); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("stat: %v %v", st, err)
			}
			check(t, os.Rename(src+"/moving", src+"/moved"))
			check(t, os.Remove(src+"/new"))
			d.sync()
			e.wait(".", "DELETE new")
			want := []string{"MOVED_FROM moving (1)", "MOVED_TO moved (1)", "DELETE new"}
			if got := e.story()["."]; !slices.Equal(got, want) {
				t.Errorf("heard %q, want %q", got, want)
			}
		})
	}
}

// With --mask=all, opens, reads and closes are heard, too.
func TestMaskAll(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			dirs := place(t, "src", "mnt")
			src, mnt := dirs[0], dirs[1]
			write(t, src+"/f", "text")
			d := serve(t, src, mnt, "--mask=all", "--watcher="+backend)
			if _, err := os.Stat(mnt + "/f"); err != nil {
				t.Fatal(err)
			}
			// By inotify the daemon hears that it has listed SOURCE itself.
			d.sync()
			native, guest := listen(t, src, notify.AllMask, "f"), listen(t, mnt, notify.AllMask, "f")
			step := func(name string) {
				check(t, os.Mkdir(src+"/"+name, 0o755))
				native.wait(".", "CREATE,ISDIR "+name)
				guest.wait(".", "CREATE,ISDIR "+name)
			}
			f, err := os.Open(src + "/f")
			check(t, err)
			step("1")
			_, err = f.Read(make([]byte, 10))
			check(t, err)
			step("2")
			check(t, f.Close())
			step("3")
			compare(t, native, guest)
			// Whether an open is for writing, only its close tells, so the guest opens again
			// for that. Nothing may be missing.
			f, err = os.OpenFile(src+"/f", os.O_RDWR, 0)
			check(t, err)
			step("4")
			_, err = f.WriteString("TEXT")
			check(t, err)
			step("5")
			check(t, f.Close())
			fenced(t, src, native, guest)
			for watch, want := range native.story() {
				left := want
				for _, text := range guest.story()[watch] {
					if len(left) > 0 && text == left[0] {
						left = left[1:]
					}
				}
				if len(left) > 0 {
					t.Errorf("watch %q: natively %q, in the guest %q", watch, want, guest.story()[watch])
				}
			}
		})
	}
}

func TestJSONLog(t *testing.T) {
	dirs := place(t, "src", "mnt")
	d := serve(t, dirs[0], dirs[1], "--log-format=json", "--log-level=debug")
	write(t, dirs[0]+"/f", "x")
	d.sync()
	d.stop(unix.SIGTERM)
	seen := map[string]bool{}
	for line := range strings.Lines(d.log.String()) {
		var rec struct {
			Level, Msg, Mountpoint string
			Time                   time.Time
		}
		if err := json.Unmarshal([]byte(line), &rec); err != nil || rec.Msg == "" || rec.Level == "" || rec.Time.IsZero() {
			t.Errorf("not a record: %s (%v)", line, err)
		}
		if rec.Mountpoint == dirs[1] {
			seen[rec.Msg] = true
		}
	}
	if !seen["mounted"] || !seen["unmounted"] {
		t.Errorf("not told that it was mounted and unmounted:\n%s", d.log)
	}
}

// systemd is told when the mount is ready, not before, and when it stops.
func TestSystemdReadiness(t *testing.T) {
	needFUSE(t)
	dirs := place(t, "src", "mnt")
	socket := filepath.Join(filepath.Dir(dirs[0]), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	check(t, err)
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	d := serve(t, dirs[0], dirs[1])
	check(t, l.SetReadDeadline(time.Now().Add(patience)))
	buf := make([]byte, 4096)
	n, err := l.Read(buf)
	check(t, err)
	if !strings.Contains(string(buf[:n]), "READY=1") {
		t.Errorf("told %q", buf[:n])
	}
	if !isMounted(t, dirs[1]) {
		t.Error("told before it was mounted")
	}
	d.stop(unix.SIGTERM)
	n, err = l.Read(buf)
	check(t, err)
	if !strings.Contains(string(buf[:n]), "STOPPING=1") {
		t.Errorf("told %q", buf[:n])
	}
}

// A user without privileges mounts by fusermount3 and listens by inotify.
func TestUnprivileged(t *testing.T) {
	needFUSE(t)
	device(t, 0o666)
	testenv.Need(t, testenv.Fusermount)
	tool := testenv.NeedTool(t, "inotifywait")
	dirs := place(t, "src", "mnt", "native/plain")
	src, mnt, plain := dirs[0], dirs[1], dirs[2]
	check(t, errors.Join(os.Chown(src, nobody, nobody), os.Chown(mnt, nobody, nobody)))
	d, said := try(t, as(exec.Command(bin, "mount", src, mnt)))
	if said != "ready" {
		<-d.ended
		t.Fatalf("%s\n%s", said, d.log)
	}
	d.src, d.mnt = src, mnt
	t.Cleanup(func() { d.stop(unix.SIGTERM) })
	if !strings.Contains(d.log.String(), "backend=inotify") {
		t.Errorf("not by inotify:\n%s", d.log)
	}
	// Root may not enter (allow_other is off), so the listener is nobody, too.
	guest := start(t, as(exec.Command(tool, inotifyArgs(mnt)...)), "Watches established.")
	native := start(t, exec.Command(tool, inotifyArgs(plain)...), "Watches established.")
	tell(t, false, plain, native, src, guest, func() {
		if out, code := finish(t, as(exec.Command(bin, "sync", mnt))); code != 0 {
			t.Fatalf("sync: exit %d: %s", code, out)
		}
	})
	equal(t, native.normal(plain), guest.normal(mnt))
	guest.stop()
	if out, code := finish(t, as(exec.Command(bin, "umount", mnt))); code != 0 {
		t.Errorf("umount: exit %d: %s", code, out)
	}
	d.ends("umount")
}

// TestNoOpen: the guest opens without a request, hears the host's closes, and the host hears the guest's.
func TestNoOpen(t *testing.T) {
	dirs := place(t, "src", "mnt")
	src, mnt := dirs[0], dirs[1]
	d := serve(t, src, mnt, "--no-open", "--watcher=fanotify")
	write(t, src+"/f", "one")
	d.sync() // the guest is not to hear of this CLOSE_WRITE instead of the next one
	native, guest := listen(t, src, notify.DefaultMask), listen(t, mnt, notify.DefaultMask)
	read := func() string {
		t.Helper()
		b, err := os.ReadFile(mnt + "/f")
		check(t, err)
		return string(b)
	}
	if got := read(); got != "one" {
		t.Errorf("read %q", got)
	}
	write(t, src+"/f", "two")
	guest.wait(".", "CLOSE_WRITE f")
	if got := read(); got != "two" {
		t.Errorf("read %q after CLOSE_WRITE", got)
	}
	write(t, mnt+"/g", "guest")
	native.wait(".", "CLOSE_WRITE g")
	if got, err := os.ReadFile(src + "/g"); err != nil || string(got) != "guest" {
		t.Errorf("the host reads %q, %v", got, err)
	}
	for _, extra := range []string{"--notify=off", "--default-permissions=false", "--watcher=inotify"} {
		wrong(t, mountCommand(src, place(t, "other")[0], "--no-open", extra), "--no-open")
	}
}
