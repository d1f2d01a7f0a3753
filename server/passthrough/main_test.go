package passthrough

import (
	"fmt"
	"os"
	"testing"
)

// TestMain runs helpers of tests that need another process, and fails if the tests
// have left descriptors behind.
func TestMain(m *testing.M) {
	if name := os.Getenv("PASSTHROUGH_HELPER"); name != "" {
		if err := helpers()[name](os.Args[len(os.Args)-1]); err != nil {
			fmt.Fprintln(os.Stderr, name, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	before := countFDs()
	code := m.Run()
	// The runtime's poller and go-fuse's pools of pipes come with first use.
	after := countFDs()
	if code == 0 && after > before+8 {
		fmt.Fprintf(os.Stderr, "%d descriptors before, %d after\n", before, after)
		code = 1
	}
	os.Exit(code)
}

func countFDs() int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(names)
}
