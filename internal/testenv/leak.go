package testenv

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// settle is how long what is on its way out may take: goroutines that end, descriptors
// whose closing somebody else finishes, loop devices.
const settle = 5 * time.Second

// LeakMain runs the tests of a package and exits, with status 1 if they left
// behind a descriptor, a goroutine (and with it the thread that it blocks), a thread
// with other credentials or in another mount namespace than the first, a child process, a
// mount or a loop device. Use it as
//
//	func TestMain(m *testing.M) { testenv.LeakMain(m) }
func LeakMain(m *testing.M) {
	top, err := os.MkdirTemp("", "heraldfs-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		os.Exit(1)
	}
	os.Setenv("TMPDIR", top)
	// Unprivileged tests look for things below it.
	os.Chmod(top, 0o755)
	code := leakRun(m.Run, top, settle)
	os.RemoveAll(top)
	os.Exit(code)
}

// leakRun runs the tests and looks for what they left behind.
func leakRun(tests func() int, top string, settle time.Duration) int {
	// The first use of the poller opens two descriptors for good.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	before := descriptors()
	code := tests()
	var leaks []string
	for deadline := time.Now().Add(settle); ; time.Sleep(10 * time.Millisecond) {
		leaks = slices.Concat(leakedDescriptors(before), goroutines(), strangeThreads(), children(), mountsBelow(top), loopsBelow(top))
		if len(leaks) == 0 || time.Now().After(deadline) {
			break
		}
	}
	for _, leak := range leaks {
		fmt.Fprintln(os.Stderr, "leaked:", leak)
		code = max(code, 1)
	}
	for _, dir := range mountPoints(top) {
		unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	return code
}

func descriptors() map[string]string {
	fds := map[string]string{}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fds
	}
	for _, e := range entries {
		// The one that ReadDir used is gone by now.
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			fds[e.Name()] = target
		}
	}
	return fds
}

func leakedDescriptors(before map[string]string) []string {
	var leaks []string
	now := descriptors()
	for _, fd := range slices.Sorted(maps.Keys(now)) {
		if before[fd] != now[fd] {
			leaks = append(leaks, "descriptor "+fd+" "+now[fd])
		}
	}
	return leaks
}

// goroutines lists those that neither the runtime nor package testing own.
func goroutines() []string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var leaks []string
	for i, g := range strings.Split(string(buf), "\n\n") {
		own := i == 0 || strings.Contains(g, "\nos/signal.") || strings.Contains(g, "testing.(*M).") ||
			strings.Contains(g, "testing.runFuzz") || strings.Contains(g, "runtime.ensureSigM")
		if !own {
			leaks = append(leaks, g)
		}
	}
	return leaks
}

// strangeThreads lists threads that no other goroutine may be given to.
func strangeThreads() []string {
	self := strconv.Itoa(os.Getpid())
	want := threadState(self)
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	var leaks []string
	for _, task := range tasks {
		if have := threadState(task.Name()); have != "" && have != want {
			leaks = append(leaks, fmt.Sprintf("thread %s: %s, the first has %s", task.Name(), have, want))
		}
	}
	return leaks
}

func threadState(tid string) string {
	dir := "/proc/self/task/" + tid
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return ""
	}
	ns, err := os.Readlink(dir + "/ns/mnt")
	if err != nil {
		return ""
	}
	var state []string
	for line := range strings.Lines(string(status)) {
		switch key, value, _ := strings.Cut(line, ":"); key {
		case "Uid", "Gid", "Groups", "Umask":
			state = append(state, key+" "+strings.Join(strings.Fields(value), ","))
		}
	}
	return strings.Join(append(state, ns), " ")
}

func children() []string {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	var leaks []string
	for _, task := range tasks {
		list, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		for pid := range strings.FieldsSeq(string(list)) {
			cmdline, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			leaks = append(leaks, fmt.Sprintf("process %s: %q", pid, strings.ReplaceAll(string(cmdline), "\x00", " ")))
		}
	}
	return leaks
}

func mountsBelow(top string) []string {
	var leaks []string
	for _, dir := range mountPoints(top) {
		leaks = append(leaks, "mount "+dir)
	}
	return leaks
}

// mountPoints lists what is mounted below top, innermost first.
func mountPoints(top string) []string {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var dirs []string
	for line := range strings.Lines(string(info)) {
		if fields := strings.Fields(line); len(fields) > 4 && inside(unescape(fields[4]), top) {
			dirs = append(dirs, unescape(fields[4]))
		}
	}
	slices.Reverse(dirs)
	return dirs
}

// unescape undoes the octal escapes of /proc/PID/mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func inside(path, top string) bool { return strings.HasPrefix(path, top+"/") }

func loopsBelow(top string) []string {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var leaks []string
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if name := strings.TrimSpace(string(backing)); err == nil && inside(name, top) {
			leaks = append(leaks, "loop device "+strings.Split(file, "/")[3]+" of "+name)
		}
	}
	return leaks
}

// users names the processes that have something open below dir, or stand there.
func users(dir string) []string {
	var found []string
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	cwds, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range append(links, cwds...) {
		if target, err := os.Readlink(link); err == nil && (target == dir || inside(target, dir)) {
			found = append(found, link+" -> "+target)
		}
	}
	return found
}
