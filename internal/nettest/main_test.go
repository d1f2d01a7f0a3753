package nettest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// bin is the heraldfs program under test; TestMain sets it before any test runs.
var bin string

func TestMain(m *testing.M) {
	top, err := os.MkdirTemp("", "heraldfs-nettest-")
	if err == nil {
		bin = filepath.Join(top, "heraldfs")
		var out []byte
		if out, err = exec.Command("go", "build", "-o", bin, "github.com/heraldfs/heraldfs/cmd/heraldfs").CombinedOutput(); err != nil {
			err = fmt.Errorf("build heraldfs: %w\n%s", err, out)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// LeakMain exits.
	testenv.LeakMain(m)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func need(t testing.TB) {
	t.Helper()
	testenv.Need(t, testenv.Root)
	testenv.NeedTool(t, "ip")
}
