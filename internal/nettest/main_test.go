package nettest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// bin is the heraldfs program under test; need sets it.
var bin string

// build is done once, below the directory that LeakMain removes.
var build = sync.OnceValue(func() error {
	bin = filepath.Join(os.TempDir(), "heraldfs")
	if out, err := exec.Command("go", "build", "-o", bin, "github.com/heraldfs/heraldfs/cmd/heraldfs").CombinedOutput(); err != nil {
		return fmt.Errorf("build heraldfs: %w\n%s", err, out)
	}
	return nil
})

func TestMain(m *testing.M) { testenv.LeakMain(m) }

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
	check(t, build())
}
