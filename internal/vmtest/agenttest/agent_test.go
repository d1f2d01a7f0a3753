package agenttest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heraldfs/heraldfs/internal/vmtest"
	"github.com/heraldfs/heraldfs/notify"
)

func listenNotify(path string) (*net.UnixConn, error) {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path})
}

const everything = uint32(notify.DefaultMask)

// limit bounds what a guest under TCG does in less than a second.
const limit = 60 * time.Second

// TestGuest tries everything that does not need a guest of its own in one.
func TestGuest(t *testing.T) {
	b := newBed(t)
	for _, c := range []struct {
		name string
		run  func(b *bed)
	}{
		{"binary", testBinary}, {"events", testEvents}, {"contents", testContents}, {"names", testNames}, {"mapped", testMapped},
		{"deep", testDeep}, {"ends", testEnds}, {"echo", testEcho}, {"inotifywait", testInotifywait}, {"restart", testAgentRestart}, {"absent", testAbsent},
		{"vsock", testVsock}, {"vsock serve", testVsockServe}, {"initramfs", testInitramfs},
		{"remount", testRemount}, {"backend", testBackendRestart}, {"reboot", testReboot}, {"killed", testBackendKilled},
	} {
		if !t.Run(c.name, func(t *testing.T) {
			old := b.t
			b.t = t
			defer func() { b.t = old }()
			b.vm.Use(t)
			c.run(b)
		}) {
			t.Logf("heraldfs virtiofs said:\n%s", tail(b.said.String()))
			t.Logf("the agent said:\n%s", b.vm.Run(agentLog))
		}
	}
}

func testBinary(b *bed) {
	st, err := os.Stat(filepath.Join(b.programs, "heraldfs-agent"))
	if err != nil || st.Size() > maxBinary {
		b.t.Errorf("the agent has %d bytes, %v; at most %d", st.Size(), err, maxBinary)
	}
}

// testEvents: each kind of change on the host, in order.
func testEvents(b *bed) {
	b.do("mkdir events; mkdir events/sub; echo 1 > events/sub/old")
	b.vm.Run("ls /mnt/events/sub")
	w := b.vm.Watch(everything, "/mnt", "/mnt/events", "/mnt/events/sub", "/mnt/events/sub/old")
	defer w.Close()
	if err := os.WriteFile(filepath.Join(b.outside, "in"), []byte("x"), 0o644); err != nil {
		b.t.Fatal(err)
	}
	for _, c := range []struct {
		script string
		want   []string
	}{
		{"echo x > events/f", []string{"events CREATE f", "events MODIFY f", "events CLOSE_WRITE f"}},
		{"chmod 600 events/f", []string{"events ATTRIB f"}},
		{"ln events/f events/g", []string{"events CREATE g"}},
		{"ln -s f events/l", []string{"events CREATE l"}},
		{"mkfifo events/p", []string{"events CREATE p"}},
		{"mkdir events/d", []string{"events CREATE,ISDIR d"}},
		{"mv events/f events/sub/f", []string{"events MOVED_FROM f", "events/sub MOVED_TO f"}},
		{"mv events/sub/f events/sub/old", []string{"events/sub MOVED_FROM f", "events/sub MOVED_TO old", "events/sub/old ATTRIB",
			"events/sub/old DELETE_SELF", "events/sub/old IGNORED"}},
		{"mv events/d ../outside/d", []string{"events MOVED_FROM,ISDIR d"}},
		{"mv ../outside/in events/in", []string{"events MOVED_TO in"}},
		{"rm events/in events/l events/p", []string{"events DELETE in", "events DELETE l", "events DELETE p"}},
		{"mkdir events/d2; rmdir events/d2", []string{"events CREATE,ISDIR d2", "events DELETE,ISDIR d2"}},
	} {
		b.do(c.script)
		b.expect(c.script, b.fence(w), c.want...)
	}
}

// testContents: who has heard of a change sees it, also if neither size nor name say so.
func testContents(b *bed) {
	f := b.path("contents")
	if err := os.WriteFile(f, []byte("0000"), 0o644); err != nil {
		b.t.Fatal(err)
	}
	b.vm.Run("cat /mnt/contents")
	w := b.vm.Watch(everything, "/mnt")
	defer w.Close()
	file, err := os.OpenFile(f, os.O_WRONLY, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	defer file.Close()
	for i := range 20 {
		want := fmt.Sprintf("%04d", i+1)
		if _, err := file.WriteAt([]byte(want), 0); err != nil {
			b.t.Fatal(err)
		}
		b.expect("write of "+want, b.fence(w), "MODIFY contents")
		if got := b.vm.Run("cat /mnt/contents"); got != want {
			b.t.Fatalf("stale: %q after a write of %q", got, want)
		}
	}
	// Not even with the same times.
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		b.t.Fatal(err)
	}
	if _, err := file.WriteAt([]byte("same"), 0); err != nil {
		b.t.Fatal(err)
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, f, []unix.Timespec{st.Atim, st.Mtim}, 0); err != nil {
		b.t.Fatal(err)
	}
	b.expect("write and times", b.fence(w), "MODIFY contents", "ATTRIB contents")
	if got := b.vm.Run("cat /mnt/contents; stat -c %Y /mnt/contents"); got != fmt.Sprintf("same%d", st.Mtim.Sec) {
		b.t.Errorf("the guest has %q", got)
	}
}

// testNames: entries, absent names and listings.
func testNames(b *bed) {
	b.do("mkdir names; echo 1 > names/there")
	b.vm.Run("ls /mnt/names; cat /mnt/names/there; ! cat /mnt/names/later")
	w := b.vm.Watch(everything, "/mnt", "/mnt/names")
	defer w.Close()
	b.do("echo 2 > names/new; mv names/new names/later; rm names/there; ln -s x names/link")
	b.fence(w)
	if got := b.vm.Run("ls /mnt/names; cat /mnt/names/later; readlink /mnt/names/link; ! cat /mnt/names/there 2>/dev/null"); got != "later\nlink\n2\nx" {
		b.t.Errorf("the guest has %q", got)
	}
	b.do("chmod 640 names/later; truncate -s 100 names/later")
	b.fence(w)
	if got := b.vm.Run("stat -c '%a %s' /mnt/names/later"); got != "640 100" {
		b.t.Errorf("the guest has %q", got)
	}
}

// testMapped: a process that has a file mapped sees a rewrite.
func testMapped(b *bed) {
	b.do("printf before > mapped")
	w := b.vm.Watch(everything, "/mnt")
	defer w.Close()
	b.vm.Run("guestd mapped /mnt/mapped > /tmp/mapped 2>&1 & until grep -q before /tmp/mapped; do usleep 10000; done")
	b.do("printf after_ | dd of=mapped conv=notrunc 2>/dev/null")
	b.fence(w)
	b.vm.Run("echo > /tmp/mapped.go; until grep -q end /tmp/mapped; do usleep 10000; done")
	if got := b.vm.Run("cat /tmp/mapped"); got != "before\nafter_\nend" {
		b.t.Errorf("the process with the mapping saw %q", got)
	}
}

// testDeep: a watched directory far down keeps its watch through renames of what is above it.
func testDeep(b *bed) {
	b.do("mkdir -p deep/1/2/3/4; mkdir deep/other")
	b.vm.Run("ls /mnt/deep/1/2/3/4 /mnt/deep/other")
	w := b.vm.Watch(everything, "/mnt", "/mnt/deep", "/mnt/deep/1/2/3/4", "/mnt/deep/other")
	defer w.Close()
	b.do("mv deep/1 deep/other/one; echo x > deep/other/one/2/3/4/f; mv deep/other/one/2/3/4 deep/four; echo x > deep/four/g")
	b.expect("renames", b.fence(w),
		"deep MOVED_FROM,ISDIR 1", "deep/other MOVED_TO,ISDIR one",
		"deep/1/2/3/4 CREATE f", "deep/1/2/3/4 MODIFY f", "deep/1/2/3/4 CLOSE_WRITE f",
		"deep MOVED_TO,ISDIR four", "deep/1/2/3/4 MOVE_SELF",
		"deep/1/2/3/4 CREATE g", "deep/1/2/3/4 MODIFY g", "deep/1/2/3/4 CLOSE_WRITE g")
	if got := b.vm.Run("ls /mnt/deep/four; ls /mnt/deep/other/one/2/3"); got != "f\ng" {
		b.t.Errorf("the guest has %q", got)
	}
}

// testEcho: what the guest does itself is heard once.
func testEcho(b *bed) {
	w := b.vm.Watch(everything, "/mnt")
	defer w.Close()
	b.vm.Run("cd /mnt; echo x > echo; mv echo echo2; chmod 600 echo2; mkdir dir; rmdir dir; rm echo2")
	b.expect("the guest's own", b.fence(w), "CREATE echo", "MODIFY echo", "CLOSE_WRITE echo", "MOVED_FROM echo", "MOVED_TO echo2",
		"ATTRIB echo2", "CREATE,ISDIR dir", "DELETE,ISDIR dir", "DELETE echo2")
}

// testInotifywait: Debian's.
func testInotifywait(b *bed) {
	b.do("mkdir -p wait/sub; echo 1 > wait/sub/f")
	b.vm.Run("inotifywait -m -r --format '%w %e %f' /mnt/wait > /tmp/wait 2> /tmp/wait.err & until grep -q established /tmp/wait.err; do usleep 10000; done")
	b.do("echo 22 > wait/sub/f; mv wait/sub/f wait/g; rm wait/g; mkdir wait/end")
	out, _, err := b.vm.Command(limit, "sh", "-c", "until grep -q end /tmp/wait; do usleep 10000; done; cat /tmp/wait")
	want := []string{"/mnt/wait/sub/ MODIFY f", "/mnt/wait/sub/ MODIFY f", "/mnt/wait/sub/ OPEN f", "/mnt/wait/sub/ CLOSE_WRITE,CLOSE f",
		"/mnt/wait/sub/ MOVED_FROM f", "/mnt/wait/ MOVED_TO g", "/mnt/wait/ DELETE g", "/mnt/wait/ CREATE,ISDIR end"}
	// Truncation and write are two MODIFY, or one if the second came before the first was read.
	got := strings.TrimSpace(strings.Replace(out, want[0]+"\n"+want[0], want[0], 1))
	if !strings.HasPrefix(got, strings.Join(want[1:], "\n")) || err != nil {
		b.t.Errorf("inotifywait said\n%s\n%v; want\n%s", got, err, strings.Join(want[1:], "\n"))
	}
	b.vm.Run("killall inotifywait || true")
}

// testAgentRestart: what happens while there is no agent is told by the next one, in order.
func testAgentRestart(b *bed) {
	b.do("mkdir restart; echo 1 > restart/f")
	b.vm.Run("cat /mnt/restart/f")
	w := b.vm.Watch(everything, "/mnt", "/mnt/restart")
	defer w.Close()
	for range 3 {
		b.killAgent()
		b.do("echo 22 > restart/g; mv restart/g restart/h; printf 2 | dd of=restart/f conv=notrunc 2>/dev/null; rm restart/h")
		b.startAgent()
		b.expect("events of the time without an agent", b.fence(w),
			"restart CREATE g", "restart MODIFY g", "restart CLOSE_WRITE g", "restart MOVED_FROM g", "restart MOVED_TO h",
			"restart MODIFY f", "restart CLOSE_WRITE f", "restart DELETE h")
		if got := b.vm.Run("cat /mnt/restart/f"); got != "2" {
			b.t.Errorf("stale: %q", got)
		}
		b.do("echo 1 > restart/f")
		b.fence(w)
	}
}

// testAbsent: without an agent the guest sees what it asks for anew, within a second or so. What it was told for
// long before is put right, and told in order, when an agent is back; what the guest did itself is not told again.
func testAbsent(b *bed) {
	b.do("mkdir absent; echo 1 > absent/f; echo 1 > absent/gone; echo 1 > absent/moved")
	b.sync()
	// All this is cached for an hour.
	b.vm.Run("cd /mnt/absent; ls -l; cat f gone moved; ! cat later")
	w := b.vm.Watch(everything, "/mnt", "/mnt/absent", "/mnt/absent/gone")
	defer w.Close()
	b.signalAgent("TERM") // it says so; one that is killed is not known to be gone for ten seconds
	b.do("cd absent; printf 2 | dd of=f conv=notrunc 2>/dev/null; echo x > later; rm gone; mv moved new; chmod 600 new; echo 1 > g")
	b.vm.Run("cd /mnt/absent; until [ -e g ] && [ -e new ]; do usleep 50000; done; echo x > own; cat own g")
	// What it has asked for now it asks for again.
	b.do("cd absent; printf 22 | dd of=g conv=notrunc 2>/dev/null")
	b.vm.Run("cd /mnt/absent; until [ $(cat g) = 22 ]; do usleep 50000; done; ls | grep -q new")
	b.startAgent()
	b.expect("events of the time without an agent", b.fence(w),
		"absent CREATE own", "absent MODIFY own", "absent CLOSE_WRITE own",
		"absent MODIFY f", "absent CLOSE_WRITE f", "absent CREATE later", "absent MODIFY later", "absent CLOSE_WRITE later",
		"absent/gone ATTRIB", "absent/gone DELETE_SELF", "absent/gone IGNORED", "absent DELETE gone",
		"absent MOVED_FROM moved", "absent MOVED_TO new", "absent ATTRIB new", "absent CREATE g", "absent MODIFY g", "absent CLOSE_WRITE g",
		"absent MODIFY g", "absent CLOSE_WRITE g")
	if got := b.vm.Run("cd /mnt/absent; cat f later g own; ! cat gone moved 2>/dev/null; stat -c %a new; ls"); got != "2\nx\n22x\n600\nf\ng\nlater\nnew\nown" {
		b.t.Errorf("the guest has %q", got)
	}
	b.do("echo y > absent/after")
	b.expect("afterwards", b.fence(w), "absent CREATE after", "absent MODIFY after", "absent CLOSE_WRITE after")
}

// testRemount: the agent lets go of a mount that has gone, and takes the next one.
func testRemount(b *bed) {
	b.vm.Run("umount /mnt; ! grep -q virtiofs /proc/mounts; mount -t virtiofs share /mnt")
	b.attached()
	testEcho(b)
	w := b.vm.Watch(everything, "/mnt")
	defer w.Close()
	b.do("echo x > remount; rm remount")
	b.expect("after a remount", b.fence(w), "CREATE remount", "MODIFY remount", "CLOSE_WRITE remount", "DELETE remount")
}

// testBackendRestart: another heraldfs virtiofs takes over, on a device that is plugged in anew.
func testBackendRestart(b *bed) {
	b.vm.Detach(0)
	b.stop()
	b.do("echo x > while-away")
	b.start()
	b.vm.Attach(0, vmtest.Share{Socket: b.socket, Tag: "share", Hotplug: true})
	b.vm.Run("umount /mnt; until mount -t virtiofs share /mnt; do usleep 50000; done; cat /mnt/while-away")
	b.attached()
	w := b.vm.Watch(everything, "/mnt")
	defer w.Close()
	b.do("rm while-away")
	b.expect("after a restart of the back-end", b.fence(w), "DELETE while-away")
}

// testReboot: the guest is reset, without a word to anybody.
func testReboot(b *bed) {
	b.vm.Reset()
	b.vm.Mount("share", "/mnt")
	b.startAgent()
	w := b.vm.Watch(everything, "/mnt")
	defer w.Close()
	b.do("echo x > reboot; rm reboot")
	b.expect("after a reset", b.fence(w), "CREATE reboot", "MODIFY reboot", "CLOSE_WRITE reboot", "DELETE reboot")
	if n := strings.Count(b.said.String(), "an agent replays"); n < 2 {
		b.t.Errorf("%d agents were taken, want one before and one after", n)
	}
}
