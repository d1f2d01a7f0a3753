package replay

import (
	"testing"

	"github.com/heraldfs/heraldfs/internal/testenv"
)

func TestMain(m *testing.M) { testenv.LeakMain(m) }
