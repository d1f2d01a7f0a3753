package passthrough

import (
	"fmt"
	"os"
	"testing"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

// TestMain runs helpers of tests that need another process, and fails if the tests
// have left anything behind.
func TestMain(m *testing.M) {
	if name := os.Getenv("PASSTHROUGH_HELPER"); name != "" {
		if err := helpers()[name](os.Args[len(os.Args)-1]); err != nil {
			fmt.Fprintln(os.Stderr, name, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	testenv.LeakMain(m)
}

func countFDs() int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(names)
}
