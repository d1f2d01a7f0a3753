package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// bin is the heraldfs program under test; TestMain sets it before any test runs.
var bin string

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	top, err := os.MkdirTemp("", "heraldfs-e2e-")
	if err == nil {
		// An unprivileged test runs the program, too.
		err = os.Chmod(top, 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(top)
	// What is mounted below it is ours, and nobody else's run's.
	os.Setenv("TMPDIR", top)
	bin = filepath.Join(top, "heraldfs")
	if err := provide(bin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := leftovers(top); err != nil {
		fmt.Fprintln(os.Stderr, "left behind:", err)
		return 1
	}
	return code
}

// provide puts the program at path.
func provide(path string) error {
	if have := os.Getenv("HERALDFS_BIN"); have != "" {
		text, err := os.ReadFile(have)
		if err != nil {
			return err
		}
		return os.WriteFile(path, text, 0o755)
	}
	build := exec.Command("go", "build", "-o", path, "github.com/heraldfs/heraldfs/cmd/heraldfs")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build heraldfs: %w\n%s", err, out)
	}
	return nil
}

// leftovers tells of processes of the program under test and of mounts that tests made.
func leftovers(top string) error {
	var errs []error
	for _, p := range processes() {
		errs = append(errs, errors.New(p))
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, " fuse.heraldfs ") && strings.Contains(line, top+"/") {
			errs = append(errs, errors.New(strings.TrimSpace(line)))
			if fields := strings.Fields(line); len(fields) > 4 {
				unix.Unmount(fields[4], unix.MNT_DETACH) // top is removed
			}
		}
	}
	return errors.Join(errs...)
}

// processes returns the command lines of all processes that run the program under test.
func processes() []string {
	var found []string
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		panic(err) // a bad pattern
	}
	for _, link := range links {
		if exe, err := os.Readlink(link); err == nil && exe == bin {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(link), "cmdline"))
			found = append(found, filepath.Base(filepath.Dir(link))+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}
